"""What a reply is worth to each of the rows that were asked together."""

from khmer_assets.teachers.answers import Kept
from khmer_assets.teachers.connection import Reply
from khmer_assets.teachers.limits import Size
from khmer_assets.teachers.messages import Fault, Wording
from khmer_assets.teachers.settings import Template


def judged(template: Template, wording: Wording, reply: Reply, took: Size, rows: int) -> list[Kept | None]:
    """A row's value, or the fault of one that was asked alone; None for one of a batch that is asked again, alone.

    Faults are `refused` (by the model or the server's filter), `cut_off` (measure: tokens of the answer), `no_json`
    (measure: characters of the answer) and `out_of_schema`.
    """
    fault: Fault | None = None
    if reply.refusal or reply.finish == "content_filter":
        fault = "refused", None, reply.refusal or "the server's filter has cut the answer off"
    elif reply.finish == "length" and rows == 1:
        limit = f"{template.max_answer_tokens:,} tokens (max_answer_tokens)"
        fault = "cut_off", float(took.answer), f"the answer has more than {limit}"
    found = [fault] * rows if fault else wording.taken_apart(reply.content or "", rows)
    kept: list[Kept | None] = []
    for place, value in enumerate(found):
        part = _part(took.prompt, place, rows), _part(took.answer, place, rows)
        if isinstance(value, dict):
            kept.append(Kept(value, None, None, None, *part))
        elif rows == 1 and value is not None:
            kept.append(Kept(None, *value, *part))
        else:
            kept.append(None)
    return kept


def _part(tokens: int, place: int, rows: int) -> int:
    """The tokens of the row at `place` of a batch; those of all rows are all tokens."""
    return tokens * (place + 1) // rows - tokens * place // rows
