"""On a device that runs behind, the run-time reads numbers where the wait costs nothing: before a computed step."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from torch.overrides import TorchFunctionMode

import cached
import ertacache.runtime.apply as ertacache
from ertacache.profile.profile import Site
from ertacache.runtime import even_run, played_run
from ertacache.runtime.even_run import EvenRun
from ertacache.runtime.played_run import PlayedRun
from pipelines import PROMPTS, flux
from rest_computed import MASK, PREDICTED, T, fitted, video
from rest_computed import generate as steps_of
from supported import Small

#: What brings a number of a tensor to the host.
_WAITS = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "equal", "nonzero"}


class Noting(TorchFunctionMode):
    """Notes what waits, while the run-time's own code is running."""

    def __init__(self, found: list[str], sigmas: Tensor) -> None:
        super().__init__()
        self.found, self.host = found, sigmas.untyped_storage().data_ptr()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _WAITS or (name == "to" and any(str(a) == "cpu" for a in args)):
            if args[0].untyped_storage().data_ptr() != self.host:  # a run's grid is on the host
                self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, list[str]]]:
    """Step -> what waited in it before the denoiser ran, and after (or without it)."""
    found: dict[int, dict[str, list[str]]] = {i: {"before": [], "after": []} for i in range(T)}

    def noted(kind: type, name: str) -> None:
        original = getattr(kind, name)

        def method(self: Any, run: Any, *args: Any) -> Any:
            def stopped(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
                def computed() -> Tensor:
                    found[run.step]["before"] += here
                    here.clear()
                    output = compute()
                    here.clear()  # the denoiser's own
                    return output

                return computed

            here: list[str] = []
            if name == "call":
                args = (*args[:-1], stopped(args[-1]))
            with Noting(here, run.sigmas):
                result = original(self, run, *args)
            found[run.step]["after"] += here
            return result

        monkeypatch.setattr(kind, name, method)

    for kind in (PlayedRun, EvenRun):
        for name in ("call", "solve", "end_step"):
            noted(kind, name)
    for module in (played_run, even_run):
        monkeypatch.setattr(module, "at_once", lambda value: False)
    return found


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("site", cached.SITES)
def test_a_predicted_step_never_waits_and_a_computed_one_before_it_runs(embedded: bool, site: Site, waits: Any) -> None:
    pipe = flux(embedded)
    profile = cached.profile(pipe, site, MASK) if site == "hidden" else cached.fitted(pipe, site, MASK)
    twice(Small(pipe, cached.call_of(pipe), tuple(PROMPTS)), waits, profile=profile)
    check(waits)


def twice(small: Small, waits: dict[int, dict[str, list[str]]], **given: Any) -> None:
    """The first run brings the coefficients to the device."""
    with ertacache.apply(small.pipe, **given) as stats:
        steps_of(small)
        for step in waits.values():
            step["before"], step["after"] = [], []
        steps_of(small)
    assert stats.reason is None and sum(stats.predicted.values()) > 0


def test_branches_in_one_batch_and_no_profile_do_not_wait_either(waits: Any) -> None:
    small = video()
    twice(small, waits, profile=fitted(small, "guided"))
    check(waits)
    twice(small, waits, speedup=2.0)
    assert [waits[i]["after"] for i in range(T - 1)] == [[]] * (T - 1)


def check(waits: dict[int, dict[str, list[str]]]) -> None:
    """The predictions since the last computed step and its guidance are read before the next one runs."""
    assert [(i, waits[i]) for i in PREDICTED] == [(i, {"before": [], "after": []}) for i in PREDICTED]
    for i in (1, 3, 6):
        assert waits[i]["after"] == []
    assert all(len(waits[i]["before"]) <= 2 for i in (1, 3, 6, 9))
    assert waits[3]["before"] and waits[6]["before"]  # it does ask


def test_guidance_that_changes_is_seen_at_the_next_computed_step(waits: Any, caplog: pytest.LogCaptureFixture) -> None:
    """And at the end of the run where there is none."""
    small = video()
    profile = fitted(small, "guided")
    for after, calls, shown in ((1, [1, 1, 0, 1, 0, 0, 1, 1, 1, 1], 3), (7, [1, 1, 0, 1, 0, 0, 1, 0, 0, 1], 9)):

        def change(pipe: Any, step: int, t: Any, given: dict[str, Any], at: int = after) -> dict[str, Any]:
            pipe._guidance_scale = 2.0 if step >= at else pipe._guidance_scale
            return {}

        with ertacache.apply(small.pipe, profile, on_mismatch="compute") as stats:
            assert steps_of(small, change).calls == calls
        assert str(stats.reason).startswith(f"guidance weight: at step {shown} the profile was calibrated at 5,")
    assert len(caplog.records) == 2
