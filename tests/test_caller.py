"""Looking at what other threads are in the middle of."""

import gc
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ertacache.runtime.caller import Scope, _stacks, callers, elsewhere, places


@contextmanager
def waiting_thread() -> Iterator[frozenset[Any]]:
    """The places of a thread that waits in a function of its own."""
    found, ready, go = list[frozenset[Any]](), threading.Event(), threading.Event()

    def inner() -> None:
        found.append(places(callers()))
        ready.set()
        go.wait()

    thread = threading.Thread(target=inner)
    thread.start()
    ready.wait()
    try:
        yield found[0]
    finally:
        go.set()
        thread.join()


def test_a_call_is_elsewhere_while_another_thread_is_in_it_only():
    with waiting_thread() as wanted:
        assert elsewhere(wanted)
        assert not elsewhere(places(callers()))
    assert not elsewhere(wanted)


@pytest.mark.parametrize("collects", [True, False])
def test_no_collector_runs_while_stacks_are_walked_and_it_is_left_as_it_was(collects: bool):
    runs = list[str]()

    def note(phase: str, info: dict[str, int]) -> None:
        runs.append(phase)

    before, thresholds = gc.isenabled(), gc.get_threshold()
    (gc.enable if collects else gc.disable)()
    gc.callbacks.append(note)
    try:
        with waiting_thread():
            gc.set_threshold(1)
            runs.clear()
            stacks = _stacks()
            during, left = list(runs), gc.isenabled()
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(note)
        (gc.enable if before else gc.disable)()
    assert left is collects
    assert len(stacks) >= 2
    assert all(frame is not None for frames in stacks for frame in frames)
    assert during in ([], ["start", "stop"])  # at most once on the way in, before the collector is off


def _scope_is_under_way() -> bool:
    frame = inspect.currentframe()
    assert frame is not None
    scope = Scope(frame, None)
    del frame
    return scope.under_way()


class Held:
    """A variable of a caller, such as the history of a run."""


@pytest.mark.parametrize(
    "ask", [callers, _stacks, lambda: elsewhere(frozenset()), lambda: elsewhere(places(callers())), _scope_is_under_way]
)
def test_who_asks_does_not_live_on_until_a_collector_comes(ask: Callable[[], object]):
    def asking() -> weakref.ref[Held]:
        held = Held()
        with waiting_thread():
            ask()
        return weakref.ref(held)

    before = gc.isenabled()
    gc.disable()
    try:
        assert asking()() is None
    finally:
        (gc.enable if before else gc.disable)()
