"""Rows come back with answers or reasons, whatever the server does; nothing is paid twice, and no key is told."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from khmer_assets.foundation.home import PROJECT
from khmer_assets.teachers import connection, pauses
from khmer_assets.teachers.answers import costs_by_day
from khmer_assets.teachers.asking import TeacherError, teacher_of
from khmer_assets.teachers.settings import Budget, Teacher
from tests.teachers.hosts import KEY, TOPICS, Response, asked, completion, host, rows, smollm2, topics

BATCHES = TOPICS.model_copy(update={"rows_at_once": 10})
LAW = "ច្បាប់"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(pauses, "FIRST_PAUSE", 0.02)


def test_every_row_has_its_answer_in_its_place(tmp_path):
    with host() as server:
        answers, books = asked(server.teacher(prompt_price=2.0, answer_price=8.0), tmp_path, rows(30))
    assert [answer.id for answer in answers] == [str(n) for n in range(30)]
    assert [answer.value for answer in answers] == [{"topic": "rice" if n % 3 else "law"} for n in range(30)]
    assert (books.rows, books.requests, books.missing, books.reused) == (30, 30, 0, 0)
    assert books.cost == pytest.approx(30 * (100 * 2 + 10 * 8) / 1e6)


def test_the_same_again_asks_nothing_and_wants_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with host() as server:
        teacher = server.teacher(key_variable="TEACHER_KEY")
        first, _ = asked(teacher, tmp_path, rows(12))
        monkeypatch.delenv("TEACHER_KEY")
        again, books = asked(teacher, tmp_path, rows(12), BATCHES)
    assert again == first
    assert len(server.seen) == 12
    assert (books.requests, books.reused, books.cost) == (0, 12, 0)


def test_a_changed_template_asks_anew_and_a_row_that_came_twice_is_asked_once(tmp_path):
    with host() as server:
        asked(server.teacher(), tmp_path, rows(4) + [{**row, "id": f"copy of {row['id']}"} for row in rows(4)])
        assert len(server.seen) == 4
        answers, _ = asked(server.teacher(), tmp_path, rows(4), TOPICS.model_copy(update={"system": "ចូរជ្រើសប្រធានបទ។"}))
    assert len(server.seen) == 8
    assert len(answers) == 4


def test_ten_rows_are_one_request_and_khmer_goes_unescaped(tmp_path):
    with host() as server:
        answers, books = asked(server.teacher(at_a_time=1), tmp_path, rows(25), BATCHES)  # in their order
    assert (len(server.seen), books.requests, len(answers)) == (3, 3, 25)
    assert server.seen[0].body["messages"][1]["content"].startswith('{"1": "ច្បាប់')
    sent = server.seen[0].body["response_format"]["json_schema"]
    assert sent["strict"] and sent["schema"]["required"] == [str(n) for n in range(1, 11)]
    assert sum(answer.prompt_tokens for answer in answers) == 300


@pytest.mark.parametrize(
    ("spoilt", "finish"),
    [
        (lambda values: {k: v for k, v in values.items() if k != "4"}, "stop"),
        (lambda values: {**values, "4": {"topic": "weather"}}, "stop"),
        (lambda values: json.dumps(values)[: json.dumps(values).index('"4"') + 15], "length"),
    ],
    ids=["missing", "out of the schema", "cut"],
)
def test_what_a_batch_lacks_is_asked_again_alone(tmp_path, spoilt, finish):
    def answer(request):
        if len(request.texts) == 1:
            return topics(request)
        values = {str(n): {"topic": "law" if LAW in text else "rice"} for n, text in enumerate(request.texts, 1)}
        return completion(spoilt(values), finish)

    with host(answer) as server:
        answers, books = asked(server.teacher(), tmp_path, rows(10), BATCHES)
    assert [answer.value for answer in answers] == [{"topic": "rice" if n % 3 else "law"} for n in range(10)]
    alone = [request.texts[0] for request in server.seen[1:]]
    assert sorted(alone) == sorted(row["text"] for row in rows(10)[3 : 4 if finish == "stop" else 10])
    assert not books.set_aside


@pytest.mark.parametrize(
    ("response", "rule", "says"),
    [
        (completion(None, refusal="I cannot judge this."), "refused", "I cannot judge this."),
        (completion(None, "content_filter"), "refused", "filter"),
        (completion('{"topic": "la', "length"), "cut_off", "512 tokens"),
        (completion("The topic is law."), "no_json", "The topic is law."),
        (completion({"topic": "weather"}), "out_of_schema", "weather"),
        (completion('{"topic": "law", "topic": "rice"}'), "no_json", "twice"),
        (completion('{"topic": NaN}'), "no_json", "NaN"),
        (completion("[" * 100_000), "no_json", "deep"),
        (completion(None), "no_json", ""),
    ],
)
def test_a_row_without_a_good_answer_is_set_aside_alone_and_not_paid_again(tmp_path, response, rule, says):
    with host(
        lambda request: response if LAW in request.texts[-1] or len(request.texts) > 1 else topics(request)
    ) as server:
        answers, books = asked(server.teacher(), tmp_path, rows(10), BATCHES)
        assert Counter(answer.rule for answer in answers) == {rule: 4, None: 6}
        assert all(says in answer.reason for answer in answers if answer.rule)
        assert books.set_aside == {rule: 4}
        asked_before = len(server.seen)
        assert asked(server.teacher(), tmp_path, rows(10), BATCHES)[0] == answers
        assert len(server.seen) == asked_before


def test_schema_in_a_fence_and_after_thoughts_is_read(tmp_path):
    with host(lambda _: completion('<think>អត្ថបទនេះអំពីច្បាប់</think>\n```json\n{"topic": "law"}\n```')) as server:
        answers, _ = asked(server.teacher(), tmp_path, rows(1))
    assert answers[0].value == {"topic": "law"}


@pytest.mark.parametrize(
    "trouble",
    [
        Response({"error": {"message": "slow down"}}, 429),
        Response({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.05"}),
        Response(b"oops", 500),
        Response(b"<html>Bad gateway</html>", 502),
        Response(b'{"choices": [{"mess', length=4000),
        Response(b"<html>all is well</html>"),
        Response({"choices": []}),
    ],
    ids=["429", "429 with Retry-After", "500", "502", "reset in the middle", "200 with rubbish", "200 without choices"],
)
def test_what_is_the_servers_fault_is_asked_again(tmp_path, trouble):
    tried: Counter[str] = Counter()

    def answer(request):
        tried[request.texts[0]] += 1
        return trouble if tried[request.texts[0]] <= 2 else topics(request)

    with host(answer) as server:
        answers, books = asked(server.teacher(at_a_time=4), tmp_path, rows(8))
    assert [answer.value for answer in answers] == [{"topic": "rice" if n % 3 else "law"} for n in range(8)]
    assert not books.missing


def test_after_a_429_nobody_asks_until_the_time_that_the_server_names(tmp_path):
    def answer(request):
        return Response(b"", 429, {"Retry-After": "0.4"}) if request.number == 5 else topics(request)

    with host(answer) as server:
        asked(server.teacher(at_a_time=3), tmp_path, rows(20))
    pause = max(later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False))
    assert pause > 0.35


def test_silence_holds_up_its_own_row_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "FIRST_TOKEN_SECONDS", -50.9)  # beside 51.2 s for 512 tokens
    silent = threading.Event()

    def answer(request):
        if LAW in request.texts[0] and request.number < 9:
            silent.wait(5)
        return topics(request)

    with host(answer) as server:
        answers, _ = asked(server.teacher(at_a_time=8), tmp_path, rows(8))
        silent.set()
    assert all(answer.value for answer in answers)


def test_a_row_that_breaks_the_server_is_set_aside_and_asked_again_the_next_time(tmp_path):
    broken = True

    def answer(request):
        return Response(b"", 500) if broken and any("មាត្រា 3" in text for text in request.texts) else topics(request)

    with host(answer) as server:
        answers, books = asked(server.teacher(), tmp_path, rows(30), BATCHES)
        assert [(answer.id, answer.rule) for answer in answers if answer.rule] == [("3", "unreachable")]
        assert books.set_aside == {"unreachable": 1}
        broken = False
        answers, books = asked(server.teacher(), tmp_path, rows(30), BATCHES)
    assert (books.requests, books.reused, answers[3].value) == (1, 29, {"topic": "law"})


@pytest.mark.parametrize(
    ("settings", "response", "says"),
    [
        ({"key_variable": "NO_SUCH_KEY"}, None, "NO_SUCH_KEY is not set"),
        ({"key_variable": "TEACHER_KEY"}, Response({"error": f"bad key {KEY}"}, 401), "valid key into \\$TEACHER_KEY"),
        ({"key_variable": "TEACHER_KEY"}, Response({"error": f"forbidden to {KEY}"}, 403), "answers 403"),
        ({}, Response({"error": {"message": "no such model"}}, 404), "expected the model 'sage'"),
        ({}, Response(b"\x1b[2J\x00no\nsuch\x07 model", 404), r"404: \[2J no such model"),
        ({}, Response({"error": {"code": "insufficient_quota"}}, 429), "quota is used up"),
        ({}, Response({"error": {"message": "Insufficient Balance"}}, 402), "quota is used up"),
        ({}, Response(b"", 429, {"Retry-After": "90000"}), "90,000 s"),
        ({}, Response(b"", 302, {"Location": "http://127.0.0.1/"}), "answers 302"),
        ({}, Response({"error": "unknown field 'messages'"}, 400), "takes no request"),
        ({"address": "http://127.0.0.1:9/v1"}, None, "127.0.0.1:9/v1 does not answer"),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_one_clear_message_without_its_key(
    tmp_path, monkeypatch, settings, response, says
):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    told: list[str] = []
    with host(lambda request: response) as server, pytest.raises(TeacherError, match=says) as error:
        asked(server.teacher(**settings), tmp_path, rows(30), log=told.append)
    assert KEY not in str(error.value) + "".join(told)
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is None


def test_the_key_is_sent_and_stands_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    told: list[str] = []
    with host(lambda request: completion({"topic": KEY} if request.number < 3 else {"topic": "law"})) as server:
        answers, books = asked(server.teacher(key_variable="TEACHER_KEY"), tmp_path, rows(9), log=told.append)
    assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in f"{answers} {books} {books.metadata()} {told}"
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.iterdir())


def test_a_quota_that_ends_leaves_the_rest_for_the_next_time(tmp_path):
    quota = 5

    def answer(request):
        return topics(request) if request.number <= quota else Response({"error": {"code": "insufficient_quota"}}, 429)

    with host(answer) as server:
        answers, books = asked(server.teacher(at_a_time=1), tmp_path, rows(12))
        assert (len(answers), books.missing) == (5, 7)
        assert "quota" in books.metadata()["teachers_missing_because"]
        quota = 100
        answers, books = asked(server.teacher(at_a_time=1), tmp_path, rows(12))
    assert (len(answers), books.reused, books.missing) == (12, 5, 0)


@pytest.mark.parametrize(
    ("budget", "within"),
    [
        ({"requests": 7}, lambda books: books.requests == 7),
        ({"tokens": 5000}, lambda books: 3000 < books.tokens <= 5000),
        ({"money": 0.01}, lambda books: 0.006 < books.cost <= 0.01),
    ],
)
def test_a_budget_is_not_overdrawn_and_the_next_call_goes_on(tmp_path, budget, within):
    with host() as server:
        teacher = server.teacher(prompt_price=2.0, answer_price=8.0)
        template = TOPICS.model_copy(update={"max_answer_tokens": 32})
        answers, books = asked(teacher, tmp_path, rows(60), template, Budget(**budget))
        assert within(books)
        assert len(answers) + books.missing == 60 and books.missing
        assert "budget" in books.metadata()["teachers_missing_because"]
        while books.missing:
            before = books.missing
            answers, books = asked(teacher, tmp_path, rows(60), template, Budget(**budget))
            assert books.missing < before
    assert len(answers) == 60
    assert len(server.seen) == 60


def test_a_budget_of_money_wants_prices(tmp_path):
    with host() as server, pytest.raises(TeacherError, match="prompt_price"):
        asked(server.teacher(), tmp_path, rows(1), budget=Budget(money=1))


def test_without_prices_the_cost_is_unknown_not_nothing(tmp_path):
    with host() as server:
        _, books = asked(server.teacher(), tmp_path, rows(2))
    assert books.cost is None
    assert "unknown" in books.metadata()["teachers"]


def test_a_server_without_structured_output_is_asked_without(tmp_path):
    def answer(request):
        if "response_format" in request.body:
            return Response({"error": {"message": "response_format json_schema is not supported"}}, 400)
        if "max_tokens" in request.body:
            return Response({"error": {"message": "Unsupported parameter: use 'max_completion_tokens'"}}, 400)
        return topics(request)

    told: list[str] = []
    with host(answer) as server:
        answers, _ = asked(server.teacher(at_a_time=2), tmp_path, rows(9), log=told.append)
    assert all(answer.value for answer in answers)
    assert server.seen[-1].body["max_completion_tokens"] == 512
    assert "schema" in server.seen[-1].body["messages"][0]["content"]
    assert sum("does not take" in line for line in told) == 2


def test_rows_too_long_for_the_teacher_are_set_aside_before_or_after_they_are_sent(tmp_path):
    long = {"id": "long", "text": "ស្រូវ" * 4000}

    def answer(request):
        if any(len(text) > 1000 for text in request.texts):
            return Response({"error": {"message": "This model's maximum context length is 2048 tokens"}}, 400)
        return topics(request)

    with host(answer) as server:
        after, _ = asked(server.teacher(), tmp_path, [*rows(5), long], BATCHES)
        assert [answer.rule for answer in after] == [None] * 5 + ["too_long"]
        sent = len(server.seen)
        before, _ = asked(server.teacher(context_length=2048), tmp_path, [*rows(5), long], BATCHES)
    assert before[-1].rule == "too_long" and "context_length is 2,048" in before[-1].reason
    assert len(server.seen) == sent


def test_a_template_must_find_its_values_and_a_row_without_text_is_set_aside(tmp_path):
    with host() as server:
        with pytest.raises(TeacherError, match="the row '7' has no such value"):
            asked(server.teacher(), tmp_path, [{"id": "7", "title": "ស្រូវ"}])
        spoilt = [{"id": "e", "text": " "}, {"id": "h", "text": "\ud800"}, {"id": "n", "text": None}]
        answers, _ = asked(server.teacher(), tmp_path, [*rows(1), *spoilt])
    assert [answer.rule for answer in answers] == [None, "no_value", "no_value", "no_value"]
    assert len(server.seen) == 1


def test_shares_are_kept_and_more_rows_move_none():
    teachers = [
        Teacher(name=name, address="http://127.0.0.1:1/v1", model="m", share=share)
        for name, share in (("a", 40), ("b", 35), ("c", 25))
    ]
    values = [{"text": row["text"]} for row in rows(6000)]
    chosen = [teacher_of(teachers, value).name for value in values]
    counts = Counter(chosen)
    assert [counts[name] / 6000 for name in "abc"] == pytest.approx([0.40, 0.35, 0.25], abs=0.02)
    without = [teacher_of(teachers[:2], value).name for value in values]
    assert all(now == before for now, before in zip(without, chosen, strict=True) if before != "c")


def test_three_teachers_share_the_rows_and_each_has_its_own_books(tmp_path):
    with host() as server:
        teachers = [server.teacher(name=name, model=name, prompt_price=1, answer_price=1) for name in ("a", "b", "c")]
        answers, books = asked(teachers, tmp_path, rows(90))
    assert Counter(answer.teacher for answer in answers) == Counter(request.body["model"] for request in server.seen)
    assert {name: spent.requests for name, spent in books.by_teacher.items()} == Counter(a.teacher for a in answers)
    costs = costs_by_day(tmp_path)
    assert costs["teacher"].to_list() == ["a", "b", "c"]
    assert costs["prompt_tokens"].sum() == 9000
    assert costs["cost"].sum() == pytest.approx(books.cost)


def test_one_teacher_that_cannot_be_asked_ends_the_others_too(tmp_path):
    with host() as server, pytest.raises(TeacherError, match=r"teacher b: .*does not answer"):
        asked([server.teacher(name="a"), server.teacher(name="b", address="http://127.0.0.1:9/v1")], tmp_path, rows(40))


ASKING = """
import sys
from pathlib import Path
from khmer_assets.teachers import pauses
from tests.teachers.hosts import asked, rows
from khmer_assets.teachers.settings import Teacher
teacher = Teacher(name="teacher", address=sys.argv[1], model="sage", at_a_time=4)
answers, books = asked(teacher, Path(sys.argv[2]), rows(int(sys.argv[3])))
print(len(answers), books.requests, books.reused, flush=True)
"""


def asking(server, folder, count):
    return subprocess.Popen(
        [sys.executable, "-c", ASKING, server.address, str(folder), str(count)],
        cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_at_once_ask_for_no_row_twice_and_keep_the_limit_of_one(tmp_path):
    under_way, most, lock = 0, 0, threading.Lock()

    def answer(request):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1
        return topics(request)

    with host(answer) as server:
        both = [asking(server, tmp_path, 150) for _ in range(2)]
        told = [list(map(int, process.communicate(timeout=60)[0].split())) for process in both]
    assert [answered for answered, _, _ in told] == [150, 150]
    assert len(server.seen) == 150
    assert sum(requests for _, requests, _ in told) == 150
    assert most <= 4


def test_a_kill_loses_no_answer_and_pays_again_at_most_for_what_was_under_way(tmp_path):
    def answer(request):
        time.sleep(0.03)
        return topics(request)

    with host(answer) as server:
        process = asking(server, tmp_path, 400)
        while len(server.seen) < 40:
            time.sleep(0.01)
        process.kill()
        process.wait()
        asked_before = len(server.seen)
        answers, books = asked(server.teacher(at_a_time=4), tmp_path, rows(60))
    assert len(answers) == 60
    assert books.reused + 4 >= asked_before
    assert len(server.seen) <= 60 + 4
    assert books.lost == len(server.seen) - 60
    assert re.fullmatch("[0-9a-f]{12}-[0-9]+", server.seen[0].headers["x-request-id"])


@pytest.mark.slow
def test_a_real_teacher_keeps_to_the_schema_in_every_answer(tmp_path):
    judged = {
        "type": "object",
        "properties": {
            "topic": {"enum": ["rice", "law", "health"]},
            "quality": {"type": "integer", "minimum": 1, "maximum": 10},
            "tags": {"type": "array", "items": {"enum": ["old", "new"]}, "minItems": 1, "maxItems": 2},
        },
        "required": ["topic", "quality", "tags"],
    }
    texts = ["Farmers harvest rice in November.", "A new law on work was passed.", "Wash your hands.", "ស្រូវទុំហើយ"]
    about = [{"id": str(n), "text": f"{texts[n % 4]} ({n})"} for n in range(12)]
    template = TOPICS.model_copy(update={"answer_schema": judged, "system": "Judge the text.", "max_answer_tokens": 64})
    with smollm2() as teacher:
        alone, books = asked(teacher, tmp_path / "alone", about[:4], template)
        batch, _ = asked(teacher, tmp_path / "batch", about, template.model_copy(update={"rows_at_once": 4}))
    assert [answer.rule for answer in [*alone, *batch]] == [None] * 16
    assert all(1 <= answer.value["quality"] <= 10 for answer in [*alone, *batch])
    assert books.by_teacher["smollm2"].guessed == 0 and books.tokens > 400


def test_a_teacher_that_gives_no_usable_answer_is_not_paid_for_all_rows(tmp_path):
    with host(lambda request: completion("I would say that this is about law.")) as server:
        answers, books = asked(server.teacher(at_a_time=4), tmp_path, rows(200))
    assert len(server.seen) < 60
    assert books.missing == 200 - len(answers)
    assert "none of the first" in books.metadata()["teachers_missing_because"]


def test_a_fault_of_our_own_ends_the_call_and_does_not_wait_for_ever(tmp_path, monkeypatch):
    async def broken(self, body, identity):
        raise ZeroDivisionError

    monkeypatch.setattr(connection.Connection, "ask", broken)
    with host() as server, pytest.raises(ZeroDivisionError):
        asked(server.teacher(), tmp_path, rows(3))


def test_a_proxy_that_the_environment_names_is_used(tmp_path, monkeypatch):
    with host() as proxy:
        monkeypatch.setenv("http_proxy", proxy.address.removesuffix("/v1"))
        monkeypatch.setenv("TEACHER_KEY", KEY)
        teacher = proxy.teacher(address="http://teacher.example/v1", key_variable="TEACHER_KEY")
        answers, _ = asked(teacher, tmp_path, rows(4))
    assert all(answer.value for answer in answers)
    assert proxy.seen[0].headers["host"] == "teacher.example"
    assert proxy.seen[0].headers["authorization"] == f"Bearer {KEY}"
