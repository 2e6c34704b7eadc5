"""What schemathesis must not expect: rules between fields, which no schema tells. Other tests are for them."""

import json
from typing import Any

import schemathesis


def keeps_rules_between_fields(body: Any) -> bool:
    """Whether tools have each their own name and stand alone, none is demanded, and no calls are sent again."""
    if not isinstance(body, dict):
        return True
    tools, choice = body.get("tools"), body.get("tool_choice")
    form = body.get("response_format") or body.get("text")
    several = isinstance(tools, list) and len(tools) > 1
    demanded = isinstance(choice, dict) or choice == "required"
    return not (several or demanded or (tools and form) or '"arguments"' in json.dumps(body, default=str))


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Only such cases are sent."""
    return keeps_rules_between_fields(case.body)
