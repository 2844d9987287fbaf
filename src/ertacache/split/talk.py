"""What a device and a server of split runs say to each other, until the answer is there or there is no hope of it."""

import random
import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from ertacache.errors import AnswerInvalid, DeadlineExceeded, ErtacacheError, ServerRefused, ServerUnreachable
from ertacache.files import json_object
from ertacache.profile.sealed import short
from ertacache.split.connection import Answer, Connection, Lost

#: Told of each step: "queued", "server" or "device", the steps that are made, and how many there are.
Progress = Callable[[str, int, int], object]
#: Bytes of an answer that is no handover.
_SMALL = 2**16
#: Statuses of a server that may do later.
_LATER = (429, 502, 503, 504)
#: The fewest seconds between two questions.
_PAUSE = 0.05


class Talk:
    """One run's exchanges.

    Args:
        fields: of the header of each request. retries: how often what fails is tried again. wait: seconds that the
            server may hold a question back until there is news. cap: the most bytes of the answer.
    """

    def __init__(
        self, connection: Connection, fields: Mapping[str, str], *, retries: int, wait: float, cap: int
    ) -> None:
        self._connection, self._fields, self._retries, self._wait = connection, fields, retries, wait
        self._cap, self._tries, self._job = cap, retries, ""

    def run(self, body: bytes, until: int, progress: Progress) -> bytes:
        """The answer's bytes."""
        fields, state, step = {"Idempotency-Key": uuid.uuid4().hex}, "", -1
        while True:
            if not self._job:
                self._job = self._id(self._ask("POST", "/v1/split", body, fields))
                step = -1
            asked = time.monotonic()
            answer = self._ask("GET", f"/v1/split/{self._job}?step={step}&wait={self._wait:g}")
            if answer.status == 404:  # it was restarted, or has forgotten: the same key cannot run twice
                self._job = ""
                self._retry("it does not know the run any more")
            elif answer.status == 200:
                return answer.body
            else:
                before, (state, step) = (state, step), self._place(answer, until)
                if before != (state, step):
                    progress("queued" if state == "queued" else "server", step, until)
                elif time.monotonic() - asked < _PAUSE:
                    time.sleep(min(_PAUSE, self._connection.left()))

    def cancel(self) -> None:
        """Tell the server, if it hears."""
        if self._job:
            try:
                self._connection.close()
                self._connection.deadline = time.monotonic() + 2
                self._connection.request("DELETE", f"/v1/split/{self._job}", b"", self._fields, _SMALL)
            except (Lost, ErtacacheError):
                pass  # it stops by itself when nobody asks

    def _ask(self, method: str, path: str, body: bytes = b"", fields: Mapping[str, str] | None = None) -> Answer:
        """An answer of 200, 202 or 404, after as many tries as there are."""
        cap = self._cap if method == "GET" else _SMALL
        while True:
            try:
                answer = self._connection.request(method, path, body, {**self._fields, **(fields or {})}, cap)
            except Lost as error:
                self._retry(str(error))
                continue
            if answer.status in _LATER:
                self._later(answer)
            elif answer.status in (200, 202) or (answer.status == 404 and method == "GET"):
                return answer
            else:
                raise ServerRefused(f"{self._connection.url} answered {answer.status}: {_words(answer)}")

    def _retry(self, why: str) -> None:
        """Wait before another try.

        Raises:
            ServerUnreachable: there is none left.
        """
        if self._tries == 0:
            raise ServerUnreachable(
                f"{self._connection.url} failed {self._retries + 1} times, at last since {why}; check the server, "
                "or finish here with on_failure='local'"
            )
        self._tries -= 1
        self._sleep(random.uniform(0.5, 1) * 0.25 * 2 ** (self._retries - self._tries), why)

    def _later(self, answer: Answer) -> None:
        """Wait as long as a busy server asks for; a full queue is no failure, but one that is not ready is a try."""
        asked = re.fullmatch(r"\d{1,6}", answer.fields.get("retry-after", ""))
        if answer.status != 429 and asked is None:
            self._retry(f"it answered {answer.status}: {_words(answer)}")
        else:
            self._sleep(max(_PAUSE, int(asked[0])) if asked else 1.0, f"it answered {answer.status}: {_words(answer)}")

    def _sleep(self, seconds: float, why: str) -> None:
        left = self._connection.left()
        if seconds >= left:
            raise DeadlineExceeded(
                f"{self._connection.url} is to be asked again in {seconds:.3g} s, and {left:.3g} s are left ({why}); "
                "give a longer deadline, or finish here with on_failure='local'"
            )
        time.sleep(seconds)

    def _id(self, answer: Answer) -> str:
        found = self._facts(answer).get("id")
        if answer.status != 202 or not isinstance(found, str) or not re.fullmatch("[0-9a-f]{24}", found):
            raise AnswerInvalid(
                f"{self._connection.url} answered {answer.status} with {short(found)}, which names no run; check the "
                "address"
            )
        return found

    def _place(self, answer: Answer, until: int) -> tuple[str, int]:
        """How far the run is."""
        facts = self._facts(answer)
        state, step = facts.get("status"), facts.get("step")
        if not isinstance(state, str) or type(step) is not int or not 0 <= step <= until:
            raise AnswerInvalid(
                f"{self._connection.url} says it is at step {short(step)} of {until}; ask another server"
            )
        return state, step

    def _facts(self, answer: Answer) -> dict[str, Any]:
        try:
            return json_object(answer.body[:_SMALL])
        except ValueError as error:
            raise AnswerInvalid(f"{self._connection.url} answered no JSON ({short(str(error))})") from error


def _words(answer: Answer) -> str:
    """What a server says of an error, fit to be shown."""
    if 300 <= answer.status < 400:
        return f"it points to {short(answer.fields.get('location', ''))}, and redirects are not followed"
    try:
        said = json_object(answer.body[:_SMALL])["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = answer.body[:_SMALL].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in str(said))[:500]
