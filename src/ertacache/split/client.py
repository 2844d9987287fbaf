"""The device's side of a run that is split over a network: it asks, waits, checks, and goes on."""

import logging
import math
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ertacache.errors import AnswerInvalid, ErtacacheError, InvalidArgument, SplitFailed
from ertacache.pipelines.pipeline_call import defaults_of
from ertacache.split import arguments, wire
from ertacache.split.answer import accepted
from ertacache.split.connection import Connection, parsed
from ertacache.split.encoded import check_encoded
from ertacache.split.handover import Handover
from ertacache.split.parts import Texts, second_part
from ertacache.split.request import SplitRequest
from ertacache.split.solver_state import check_solver
from ertacache.split.talk import Progress, Talk

logger = logging.getLogger(__name__)

#: Seconds that a server may hold a question back until there is news.
_HELD = 10.0


@dataclass(frozen=True)
class SplitClient:
    """A server that makes the first steps of runs: `ertacache split-server`.

    Args:
        url: its address; use https where others can listen, since latents decode to the picture.
        key: that it was started with, sent as Bearer.
        deadline: seconds for the server's part, waiting, retries and transfers included.
        timeout: seconds without a byte until a connection is given up.
        retries: how often a lost connection or a server that is not there yet is tried again in one run.
        cap: the most bytes of a handover.
        tls: for certificates of one's own; None checks them against the system's.

    Raises:
        InvalidArgument: no such address or number.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    deadline: float = 300.0
    timeout: float = 30.0
    retries: int = 3
    cap: int = wire.SIZE_CAP
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        parsed(self.url)
        if self.key is not None and not re.fullmatch("[!-~]+", self.key):
            raise InvalidArgument("key is empty, or no header carries it; use letters, digits and signs of ASCII")
        for name, least in (("deadline", 0), ("timeout", 0), ("retries", -1), ("cap", 0)):
            value = getattr(self, name)
            whole = name in ("retries", "cap")
            if type(value) not in ((int,) if whole else (int, float)) or not least < value < math.inf:
                raise InvalidArgument(f"{name} is {value!r}; give a {'whole ' * whole}number above {least}")

    def generate(
        self,
        pipe: Any,
        call: Mapping[str, Any],
        *,
        switch: int,
        texts: Texts = "embeddings",
        compressed: bool = False,
        dtype: torch.dtype | None = None,
        on_failure: Literal["raise", "local"] = "raise",
        progress: Progress | None = None,
    ) -> Any:
        """A whole run: `switch` steps by the server, the others and the decoding by `pipe`.

        Args:
            pipe: the device's pipeline. call: as for `pipe(**call)`; callbacks see the steps of this side.
            switch: 0 is `pipe(**call)`.
            on_failure: "local" makes all steps here where the server fails, and says why in the log.
            progress: called in this thread; what it raises ends the run here and there.
            texts, compressed, dtype: as `first_part`.

        Returns:
            What the pipeline returns.

        Raises:
            SplitFailed: what went wrong with the server, by its kinds.
            InvalidArgument, UnsupportedPipeline: a call that cannot be split; nothing was sent.
        """
        if on_failure not in ("raise", "local"):
            raise InvalidArgument(f"on_failure is {on_failure!r}; choose 'raise' or 'local'")
        if type(switch) is not int or switch < 0:
            raise InvalidArgument(f"switch is {switch!r}; give a whole number of steps from 0 on")
        follow = _Follow(pipe, progress, call)
        if switch == 0:
            return pipe(**follow.call)
        own = {name: value for name, value in follow.call.items() if name in arguments.OWN}
        arguments.own(pipe, own)
        try:
            handover = self.first_part(
                pipe, call, until=switch, texts=texts, compressed=compressed, dtype=dtype, progress=progress
            )
            return follow.go_on(handover, own, self.url)
        except SplitFailed as error:
            if on_failure == "raise":
                raise
            logger.warning("all steps are made here, since %s", error)
            return pipe(**follow.call)

    def first_part(
        self,
        pipe: Any,
        call: Mapping[str, Any],
        *,
        until: int,
        texts: Texts = "embeddings",
        compressed: bool = False,
        dtype: torch.dtype | None = None,
        progress: Progress | None = None,
    ) -> Handover:
        """The first `until` steps of a call, made by the server: for `second_part` with the same pipeline.

        Args:
            texts: "embeddings" are the server's, for "prompt" this side encodes its own; those in `call` are sent.
            compressed: latent, solver state and embeddings in bfloat16 on the way.
            dtype: to go on in; None as it came, or that of `pipe` where it was compressed.

        Raises:
            SplitFailed, InvalidArgument, UnsupportedPipeline: as `generate`.
        """
        if texts not in ("embeddings", "prompt"):
            raise InvalidArgument(f"texts is {texts!r}; choose 'embeddings' or 'prompt'")
        if type(until) is not int or until < 1:
            raise InvalidArgument(f"until is {until!r}; give a whole number of steps from 1 on")
        arguments.check_interruptible(pipe)
        check_solver(pipe.scheduler)
        shared = {name: value for name, value in call.items() if name not in arguments.OWN}
        request = SplitRequest.of(pipe, shared, until, texts, compressed)
        if request.texts == "embeddings":
            check_encoded(pipe)
        connection = Connection(self.url, self.tls, time.monotonic() + self.deadline, self.timeout)
        fields = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        wait = min(_HELD, self.timeout / 2)
        talk = Talk(connection, fields, retries=self.retries, wait=wait, cap=self.cap)
        try:
            data = talk.run(request.to_bytes(), until, progress or (lambda where, step, steps: None))
        except BaseException:
            talk.cancel()
            raise
        finally:
            connection.close()
        return accepted(data, request, pipe, server=self.url, cap=self.cap, dtype=dtype)


class _Follow:
    """The device's steps: told to `progress`, and how far they came."""

    def __init__(self, pipe: Any, progress: Progress | None, call: Mapping[str, Any]) -> None:
        self._pipe, self._progress, self.begun = pipe, progress, False
        self._inner = call.get("callback_on_step_end")
        self.call = dict(call)
        if "callback_on_step_end" in defaults_of(pipe) and not hasattr(self._inner, "tensor_inputs"):
            self.call["callback_on_step_end"] = self._step

    def _step(self, pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        self.begun = True
        if self._progress is not None:
            self._progress("device", i + 1, len(pipe.scheduler.timesteps))
        return given if self._inner is None else self._inner(pipe, i, t, given)

    def go_on(self, handover: Handover, own: dict[str, Any], server: str) -> Any:
        """The second part; what breaks before its first step is made comes from what was handed over."""
        try:
            return second_part(self._pipe, handover, own)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if self.begun:
                raise
            said = str(error) if isinstance(error, ErtacacheError) else f"{type(error).__name__}: {str(error)[:300]}"
            raise AnswerInvalid(f"{server} handed over what this pipeline cannot go on with ({said})") from error
