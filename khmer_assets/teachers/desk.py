"""Where one teacher's rows wait, are sent and come back: tries, pauses, and what is asked again alone.

A failure that is the server's makes its rows wait and be asked again; one that is the row's sets that row aside. A
batch is never set aside: what it has no good answer for is asked again, each row alone.
"""

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from khmer_assets.teachers.answers import ANSWERED, Answers, Kept
from khmer_assets.teachers.books import Asked, Purse
from khmer_assets.teachers.connection import Broken, Busy, Connection, Rejected, Reply, Unsupported, Unusable
from khmer_assets.teachers.judging import judged
from khmer_assets.teachers.limits import WINDOW, Limits, Size, Sizes
from khmer_assets.teachers.messages import Wording
from khmer_assets.teachers.pauses import LONGEST_ASKED_PAUSE, Pauses, pause_before
from khmer_assets.teachers.settings import Teacher, Template

TRIES = 5  # of a row, where the server fails
FIRST_REJECTIONS = 20  # rows in a row, of a server that answers none
FIRST_FAULTS = 50  # answers, of a teacher that gives none that can be used
FEWEST_TOKENS_A_BYTE = 0.1  # of any tokenizer, for what can be told to be too long before it is sent
LOOK_ELSEWHERE = 0.25  # seconds between looks at what other processes have under way
BURY_SECONDS = 2.0  # between looks for processes that died


@dataclass(eq=False)
class Item:
    """One row that is to be asked."""

    digest: str
    text: str
    alone: bool = False
    tries: int = 0


@dataclass
class _Sent:
    number: int
    items: list[Item]
    bytes: int
    at: float
    limits: list[list[float]]
    most: Size
    end: Reply | Exception | None = None


class Desk:
    """One teacher's part of a call of `ask`.

    `found` grows by what was `asked_here` and elsewhere; `stopped` says why the teacher was given up, if it was.
    """

    def __init__(
        self,
        teacher: Teacher,
        template: Template,
        answers: Answers,
        purse: Purse,
        asked: Asked,
        log: Callable[[str], None],
        purpose: str,
    ):
        self.teacher, self.answers, self.spent = teacher, answers, asked.by_teacher[teacher.name]
        self.found: dict[str, Kept] = {}
        self.asked_here: set[str] = set()
        self.stopped: str | None = None
        self._template, self._purse, self._asked, self._log, self._purpose = template, purse, asked, log, purpose
        self._waiting: deque[Item] = deque()
        self._later: list[tuple[float, int, list[Item]]] = []
        self._turns = itertools.count()
        self._elsewhere: dict[str, Item] = {}
        self._under_way: dict[int, _Sent] = {}
        self._ended: list[_Sent] = []
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = self._out_of_budget = False
        self._limits = Limits(teacher, time.monotonic())
        self._limits.note((time.monotonic() - age, size) for age, size in answers.recent(WINDOW))
        self._sizes = Sizes()
        self._without: set[str] = set()  # what the server does not take
        self._wording = Wording(template)
        self._frame_bytes = len(self._wording.system(template.rows_at_once).encode())
        self._pauses = Pauses(teacher, time.monotonic())
        self._rejections = self._others_under_way = self._good = 0
        self._buried = -BURY_SECONDS

    def add(self, items: Iterable[Item]) -> None:
        """Let rows wait."""
        self._waiting.extend(items)

    @property
    def waits(self) -> int:
        """How many rows have no answer yet."""
        later = sum(len(items) for _, _, items in self._later)
        under_way = sum(len(sent.items) for sent in self._under_way.values())
        return len(self._waiting) + later + len(self._elsewhere) + under_way

    def close(self) -> None:
        """Send nothing more; what is under way is still read."""
        self._closed = True
        self._wake.set()

    async def run(self, key: str | None) -> None:
        """Ask until every row has an answer, or none can be asked any more."""
        async with Connection(self.teacher, key) as connection:
            try:
                while True:
                    ended, self._ended = self._ended, []
                    pause, sending = self._exchange(ended)
                    for sent in sending:
                        task = asyncio.create_task(self._send(connection, sent))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
                    idle = not self._under_way and not self._ended
                    if idle and (self._closed or self._out_of_budget or not self.waits):
                        break
                    await self._until_something_happens(pause)
            finally:
                for task in self._tasks:
                    task.cancel()
                self._exchange_last()
        if self._out_of_budget and not self.stopped:
            self._asked.why_missing.append(
                f"teacher {self.teacher.name}: the budget ({self._purse.told()}) allows no more"
            )
        elif self.stopped:
            self._asked.why_missing.append(self.stopped)

    async def _until_something_happens(self, seconds: float) -> None:
        self._wake.clear()
        if self._ended:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    async def _send(self, connection: Connection, sent: _Sent) -> None:
        rows = len(sent.items)
        most = rows * self._template.max_answer_tokens
        body: dict[str, Any] = {
            "model": self.teacher.model,
            "messages": self._wording.messages([item.text for item in sent.items]),
            "max_completion_tokens" if "max_completion_tokens" in self._without else "max_tokens": most,
        }
        if "temperature" not in self._without:
            body["temperature"] = self._template.temperature
        if "response_format" not in self._without:
            schema = {"name": "answer", "schema": self._wording.schema(rows), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        try:
            sent.end = await connection.ask(body, f"{self.answers.name}-{sent.number}")
        except Exception as error:  # what is not the teacher's is raised where it can be seen
            sent.end = error
        self._ended.append(sent)
        self._wake.set()

    def _exchange_last(self) -> None:
        """Keep what came in before the run was broken off."""
        if self._ended:
            ended, self._ended = self._ended, []
            self._closed = True
            self._exchange(ended)

    def _exchange(self, ended: Sequence[_Sent]) -> tuple[float, list[_Sent]]:
        """In one transaction, keep what has come in, and note what may go out; also tell how long there is to wait."""
        sending: list[_Sent] = []
        with self.answers.change():
            for sent in ended:
                self._take_in(sent)
            pause, self._out_of_budget = LOOK_ELSEWHERE, False
            if not self._closed:
                self._look_elsewhere()
                while (wait := self._next(sending)) == 0:
                    pass
                pause = min(pause, wait) if self._under_way or self._elsewhere else wait
        return max(pause, 0.001), sending

    def _look_elsewhere(self) -> None:
        """What other processes have answered meanwhile is found; what they have given up waits here again."""
        now = time.monotonic()
        if now - self._buried >= BURY_SECONDS:
            self._asked.lost += self.answers.bury()
            self._buried = now
        requests, size = self.answers.sent_elsewhere()
        if requests:
            self._limits.take(size, now, requests)
        self._others_under_way = self.answers.under_way_elsewhere()
        if self._elsewhere:
            known = self.answers.known(list(self._elsewhere))
            for digest, kept in known.items():
                self.found[digest] = kept
                del self._elsewhere[digest]
            claimed = self.answers.claimed_elsewhere(list(self._elsewhere))
            for digest in [digest for digest in self._elsewhere if digest not in claimed]:
                self._waiting.append(self._elsewhere.pop(digest))

    def _next(self, sending: list[_Sent]) -> float:
        """Make one more request ready, if one may be sent; else the seconds until the next may be."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._waiting.extendleft(reversed(heapq.heappop(self._later)[2]))
        if not self._waiting:
            return max(0.001, min(self._later[0][0] - now, LOOK_ELSEWHERE) if self._later else LOOK_ELSEWHERE)
        if now < self._pauses.until:
            return min(self._pauses.until - now, LOOK_ELSEWHERE)
        if len(self._under_way) + self._others_under_way >= self.teacher.at_a_time:
            return LOOK_ELSEWHERE
        items = self._batch()
        if not items:
            return 0.0
        size = sum(len(item.text.encode()) for item in items) + self._frame_bytes
        most_tokens = len(items) * self._template.max_answer_tokens
        most, guess = self._sizes.at_most(size, most_tokens), self._sizes.likely(size, len(items), most_tokens)
        self._out_of_budget = not self._purse.allows(self.teacher, most)
        wait = LOOK_ELSEWHERE if self._out_of_budget else self._limits.wait(guess, now)
        if wait > 0:
            self._waiting.extendleft(reversed(items))
            return wait
        number = self.answers.begin([item.digest for item in items], self._purpose, size, guess)
        self._purse.take(self.teacher, most)
        sent = _Sent(number, items, size, now, self._limits.take(guess, now), most)
        self._under_way[number] = sent
        sending.append(sent)
        return 0.0

    def _batch(self) -> list[Item]:
        """The next rows to be asked together; without what others have, and what is too long."""
        items: list[Item] = []
        room = (self.teacher.context_length or 10**12) - self._template.max_answer_tokens
        tokens = self._tokens_a_byte * self._frame_bytes
        while self._waiting and len(items) < self._template.rows_at_once:
            item = self._waiting[0]
            needs = self._tokens_a_byte * len(item.text.encode())
            if items and (item.alone or tokens + needs > room):
                break
            self._waiting.popleft()
            if not items and tokens + needs > room:
                limit = self.teacher.context_length
                reason = f"about {tokens + needs:,.0f} tokens and the answer, the teacher's context_length is {limit:,}"
                self._set_aside(item, "too_long", tokens + needs, reason)
                continue
            items.append(item)
            tokens += needs
            room -= self._template.max_answer_tokens
            if item.alone:
                break
        return self._not_elsewhere(items)

    def _not_elsewhere(self, items: list[Item]) -> list[Item]:
        if not self.answers.shared:
            return items
        digests = [item.digest for item in items]
        claimed = self.answers.claimed_elsewhere(digests)
        known = self.answers.known(digests)
        for item in items:
            if item.digest in known:
                self.found[item.digest] = known[item.digest]
            elif item.digest in claimed:
                self._elsewhere[item.digest] = item
        return [item for item in items if item.digest not in claimed and item.digest not in known]

    @property
    def _tokens_a_byte(self) -> float:
        if not self._sizes.answers:
            return FEWEST_TOKENS_A_BYTE
        return self._sizes.prompt_tokens / max(self._sizes.prompt_bytes, 1)

    def _take_in(self, sent: _Sent) -> None:
        """What a request's end means for its rows, for the teacher, and for the books."""
        del self._under_way[sent.number]
        reply, items = sent.end, sent.items
        kept: dict[str, Kept] = {}
        took, outcome = Size(0, 0), type(reply).__name__.lower()
        if isinstance(reply, Reply):
            took, outcome = self._count(sent, reply), ANSWERED
            self._pauses.answered(time.monotonic())
            for item, verdict in zip(
                items, judged(self._template, self._wording, reply, took, len(items)), strict=True
            ):
                if verdict is None:
                    item.alone = True
                    self._waiting.append(item)
                else:
                    kept[item.digest] = self.found[item.digest] = verdict
            self.asked_here.update(kept)
            self._good += sum(verdict.value is not None for verdict in kept.values())
            faults = len(self.asked_here) - self._good
            if not self._good and faults >= FIRST_FAULTS:
                last = next(reversed(kept.values())) if kept else None
                why = f": {last.rule}, {last.reason}" if last else ""
                self._stop(f"teacher {self.teacher.name}: none of the first {faults} answers can be used{why}")
        elif isinstance(reply, Busy):
            self._rest(sent, reply, lives=True)
            self._purse.take(self.teacher, Size(0, 0), requests=-1)  # nobody pays for it
            self._waiting.extendleft(reversed(items))
        elif isinstance(reply, Broken):
            self._try_again(sent, reply)
        elif isinstance(reply, Unsupported):
            if reply.part not in self._without:
                self._log(f"teacher {self.teacher.name} does not take {reply.part}; it is asked without it ({reply})")
            self._without.add(reply.part)
            self._waiting.extendleft(reversed(items))
        elif isinstance(reply, Rejected) or (
            isinstance(reply, Unusable) and reply.status == 403 and self.spent.answered
        ):
            self._reject(items, reply)
        elif isinstance(reply, Unusable):
            self._stop(str(reply))
            self._waiting.extendleft(reversed(items))
        else:
            assert reply is not None, "only what has come back is taken in"
            raise reply
        self._purse.correct(self.teacher, sent.most, took)
        self._limits.correct(sent.limits, took)
        self.spent.requests += 1
        cost = self.teacher.cost(took.prompt, took.answer)
        self.answers.end(sent.number, [item.digest for item in items], outcome, took, cost, kept)

    def _count(self, sent: _Sent, reply: Reply) -> Size:
        took = reply.took or Size(sent.bytes // 4, len((reply.content or "").encode()) // 4)
        self.spent.guessed += reply.took is None
        self.spent.answered += 1
        self.spent.prompt_tokens += took.prompt
        self.spent.answer_tokens += took.answer
        self._sizes.learn(sent.bytes, len(sent.items), took)
        return took

    def _try_again(self, sent: _Sent, error: Broken) -> None:
        """After a pause; the whole teacher rests when nothing has been answered since the request was sent."""
        if self._pauses.last_answer <= sent.at:
            self._rest(sent, error, lives=False)
        again: list[Item] = []
        for item in sent.items:
            item.tries += 1
            if item.tries < TRIES:
                again.append(item)
            elif len(sent.items) > 1:
                item.alone, item.tries = True, 0
                again.append(item)
            else:
                self._set_aside(item, "unreachable", float(item.tries), f"{item.tries} tries, the last: {error}")
        if again:
            pause = pause_before(max(item.tries for item in again) + 1)
            when = time.monotonic() + max(pause, min(error.seconds or 0, LONGEST_ASKED_PAUSE))
            heapq.heappush(self._later, (when, next(self._turns), again))

    def _rest(self, sent: _Sent, error: Busy | Broken, lives: bool) -> None:
        """Nobody asks the teacher for a while."""
        now = time.monotonic()
        problem, new = self._pauses.begin(sent.at, now, str(error), error.seconds, lives)
        if problem:
            self._stop(problem)
        elif new:
            self._log(f"teacher {self.teacher.name} rests for {self._pauses.until - now:.1f} s: {error}")

    def _reject(self, items: list[Item], error: Exception) -> None:
        too_long = isinstance(error, Rejected) and error.too_long
        for item in items:
            if len(items) > 1:
                item.alone = True
                self._waiting.append(item)
            else:
                size = float(len(item.text))
                self._set_aside(item, "too_long" if too_long else "rejected", size, str(error))
                self._rejections += 1
        if self._rejections >= FIRST_REJECTIONS and not self.spent.answered and not too_long:
            self._stop(f"teacher {self.teacher.name} takes no request; it says: {error}")

    def _set_aside(self, item: Item, rule: str, measure: float, reason: str) -> None:
        """For this time alone: nothing was paid for it."""
        self.found[item.digest] = Kept(None, rule, measure, reason)

    def _stop(self, why: str) -> None:
        if self.stopped is None:
            self.stopped = why
            self._log(why)
        self.close()
