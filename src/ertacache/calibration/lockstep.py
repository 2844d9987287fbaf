"""Several pipeline calls in lockstep at the memory of one: they take turns, and meet at every point of a fit.

Each call has a thread, a shallow copy of the pipeline and a copy of the scheduler of its own. One runs at a time and
hands over where the others must see what it has before any of them goes on. So a fit over all prompts is exact in one
pass, whatever the batch size.
"""

import contextvars
import copy
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ertacache.errors import CalibrationError, UnsupportedPipeline


class _Abandoned(Exception):
    """Ends a call since another one has failed."""


class Lockstep:
    """The turns of `calls` calls.

    Args:
        calls: how many take part; a single one needs no thread and never waits.
    """

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self._own = threading.local()
        self._condition = threading.Condition()
        self._turn = self._arrived = self._round = self._left = 0
        self._error: BaseException | None = None

    @property
    def seat(self) -> int:
        """Which of the calls the asking thread makes."""
        return getattr(self._own, "seat", 0)

    def meet(self, action: Callable[[], object]) -> None:
        """Wait until all calls are here; then `action` is done once, and they go on, in turn.

        Raises:
            UnsupportedPipeline: the calls make different numbers of steps.
        """
        if self.calls == 1:
            action()
            return
        seat = self.seat
        with self._condition:
            if self._left:
                raise uneven()
            self._arrived += 1
            here = self._round + 1
            if self._arrived == self.calls:
                action()  # the others wait for this thread, whether it holds the lock or not
                self._arrived, self._round, self._turn = 0, here, 0
            else:
                self._turn = seat + 1
            self._condition.notify_all()
            self._wait(lambda: self._round >= here and self._turn == seat)

    def run(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Make the calls and return their results.

        Raises:
            Exception: the first one that a call raised.
        """
        if self.calls == 1:
            return [calls[0]()]
        results: list[Any] = [None] * self.calls
        carried = _Carried()

        def make(seat: int) -> None:
            self._own.seat = seat
            try:
                with self._condition:
                    self._wait(lambda: self._turn == seat)
                with carried.over():
                    results[seat] = calls[seat]()
                self._leave(seat, None)
            except BaseException as error:  # raised again in the thread that asked
                self._leave(seat, error)

        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(make, seat), daemon=True)
            for seat in range(self.calls)
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException as error:  # a keyboard interrupt: the calls end at their next turn
            self._leave(self.calls, error)
            for thread in threads:
                if thread.ident is not None:  # it was begun
                    thread.join()
            raise
        if self._error is not None:
            raise self._error
        return results

    def _leave(self, seat: int, error: BaseException | None) -> None:
        with self._condition:
            if error is None and self._arrived:
                error = uneven()
            self._error = self._error or error
            self._left += 1
            self._turn = seat + 1
            self._condition.notify_all()

    def _wait(self, ready: Callable[[], bool]) -> None:
        self._condition.wait_for(lambda: ready() or self._error is not None)
        if self._error is not None:
            raise _Abandoned from self._error


def uneven() -> UnsupportedPipeline:
    """What is wrong where the calls of a lockstep are not of one length."""
    return UnsupportedPipeline(
        "the pipeline calls of different prompts make different numbers of steps, which no schedule can serve; "
        "calibrate on prompts of one kind"
    )


def check_copies(scheduler: Any) -> None:
    """Refuse a scheduler that a copy would lead back to.

    Raises:
        CalibrationError: naming the method that was replaced.
    """
    for name in ("set_timesteps", "step"):
        own = vars(scheduler).get(name)
        if own is not None and getattr(own, "__self__", None) is not scheduler:
            raise CalibrationError(
                f"{name} of {type(scheduler).__name__} was replaced by a function of this one scheduler, which calls "
                "of several prompts need copies of; take it off, or calibrate with all of them in one call "
                "(batch_size=None)"
            )


def own_copy(pipe: Any) -> Any:
    """The pipeline for one call of several: everything shared but what a call writes on the pipeline, and the
    scheduler, which keeps the state of a run.

    Raises:
        CalibrationError: it cannot be copied.
    """
    try:
        own = copy.copy(pipe)
        # Past diffusers' own bookkeeping, which writes the configuration that both share.
        vars(own)["scheduler"] = copy.deepcopy(pipe.scheduler)
    except (TypeError, AttributeError) as error:
        raise CalibrationError(
            f"{type(pipe).__name__} cannot be copied ({error}), which calls of several prompts need; calibrate with "
            "all of them in one call (batch_size=None)"
        ) from error
    return own


class _Carried:
    """What torch keeps for each thread and the caller has set: autocast, the device, inference mode."""

    def __init__(self) -> None:
        kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        self._autocast = [(kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind)]
        self._inference = torch.is_inference_mode_enabled()
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None

    @contextmanager
    def over(self) -> Generator[None]:
        """The same in the thread that asks."""
        with ExitStack() as stack:
            if self._inference:  # what the caller's thread has made in it can be written to in it only
                stack.enter_context(torch.inference_mode())
            if self._device is not None:
                stack.enter_context(torch.cuda.device(self._device))
            for kind, dtype in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype))
            yield
