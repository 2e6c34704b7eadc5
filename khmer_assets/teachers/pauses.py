"""When a teacher is left alone for a while, and when it is given up."""

import random

from khmer_assets.teachers.settings import Teacher

FIRST_PAUSE = 1.0  # seconds; doubled before each further try
LONGEST_PAUSE = 60.0
LONGEST_ASKED_PAUSE = 600.0  # that a server may ask for; one that asks for more has used its quota up
PATIENCE = 900.0  # seconds in which a teacher answers nothing, until it is given up
FIRST_PAUSES = 4  # in a row, for a server that has never answered and may not be one, until it is given up
PAUSES = 9  # the same for one that has answered


def pause_before(next_try: int) -> float:
    """Seconds before try 2, 3, ..., with jitter, so that those who failed together do not come back together."""
    return min(FIRST_PAUSE * 2 ** (next_try - 2), LONGEST_PAUSE) * random.uniform(0.75, 1.25)


class Pauses:
    """The pauses of one teacher; `until` is when the last one ends. Times in seconds of any steady clock."""

    def __init__(self, teacher: Teacher, now: float):
        self.until = now
        self.last_answer = now
        self._teacher = teacher
        self._in_a_row = 0
        self._failing_since: float | None = None
        self._has_answered = False

    def answered(self, now: float) -> None:
        """All is well."""
        self.last_answer, self._in_a_row, self._failing_since, self._has_answered = now, 0, None, True

    def begin(self, sent: float, now: float, why: str, asked_for: float | None, lives: bool) -> tuple[str | None, bool]:
        """Begin or prolong a pause after a request, sent at `sent`, has failed.

        `asked_for`: seconds, by Retry-After. `lives`: the server has said that it is busy. Returns the reason to give
        the teacher up, if there is one, and whether the pause is a new one: those who were sent before it began only
        prolong it as far as they were asked to.
        """
        name, address = self._teacher.name, self._teacher.address
        self._failing_since = self._failing_since or now
        if asked_for is not None and asked_for > LONGEST_ASKED_PAUSE:
            return f"teacher {name} asks to be left alone for {asked_for:,.0f} s ({why}); run again then", False
        if now - self._failing_since > PATIENCE:
            return f"teacher {name} has answered nothing for {PATIENCE:,.0f} s ({why}); run again later", False
        new = sent >= self.until or self._in_a_row == 0
        self._in_a_row += new
        if not lives and self._in_a_row > (PAUSES if self._has_answered else FIRST_PAUSES):
            remedy = "expected a server that speaks OpenAI's protocol; look at the address, and whether the server runs"
            return f"teacher {name}: {address} does not answer ({why}); {remedy}", False
        if new or asked_for is not None:
            pause = (
                pause_before(self._in_a_row + 1) if asked_for is None else asked_for + random.uniform(0, FIRST_PAUSE)
            )
            self.until = max(self.until, now + pause)
        return None, new
