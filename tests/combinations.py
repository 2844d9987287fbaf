"""What "a profile works together with X" means: one row of data for each X, and one check for all of them."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ertacache
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.profile.profile import Profile
from formula_by_hand import formula_by_hand
from supported import MASK, Small, T, calibrated, generate, watched

#: Relative distance of two results whose sums were taken in another order.
ROUNDING = 1e-5
WORKS = "works"


@dataclass(frozen=True)
class Row:
    """One thing that users combine a profile with.

    Attributes:
        how: as a user writes it.
        small: the pipeline that it is tried on, without it.
        on: puts it on a pipeline; None where it lies in the pipeline or in the call.
        off: takes it off again, so that the denoiser computes what it did before.
        around: what every call of the pipeline is made in.
        call: arguments of the calls that are compared, beside those of the calibration.
        same: whether the denoiser computes the same function with it, up to `rounding`; the result is then held against
            the same profile without it, and against formula (P) by hand where it is not.
        rounding: largest relative distance from that; 0 is bit for bit.
        starts: index of the step that the compared calls start at.
        decode: compare pictures, not latents.
        conflict: pattern of the reason why it cannot be put on while a profile is applied.
        needs: packages that it is made with.
        slow: whether its test is run with the slow ones only.
        notes: for the table.
    """

    how: str
    small: Callable[[], Small]
    on: Callable[[Any], Any] | None = None
    off: Callable[[Any], Any] | None = None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    call: dict[str, Any] = field(default_factory=dict)
    same: bool = True
    rounding: float = 0.0
    starts: int = 0
    decode: bool = False
    conflict: str = ""
    needs: tuple[str, ...] = ()
    notes: str = ""
    slow: bool = False


@dataclass(frozen=True)
class Found:
    """What a check found, in the words of the table.

    Attributes:
        before: what happens where it is on before the profile.
        while_applied: what happens where it is put on, or taken off, while the profile is applied.
        result: what the cached result equals, and how closely.
        pipeline: class of the pipeline.
    """

    pipeline: str
    before: str
    while_applied: str
    result: str


def distance(a: Tensor, b: Tensor) -> float:
    """Relative distance in the second norm."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def all_computed(profile: Profile) -> Profile:
    """The profile with nothing left to predict."""
    schedule = Schedule.from_mask("#" * profile.schedule.T)
    nothing = Predictor.plain_reuse(schedule, profile.predictor.targets)
    facts = replace(profile.provenance, method={})  # which tells the calibrated schedule again
    return replace(profile, schedule=schedule, predictor=nothing, provenance=facts)


def check(row: Row) -> Found:
    """Everything that a combination must hold to, at the sites output and guided.

    - calibration runs with it; the profile's calls are counted below whatever it attaches, and follow the schedule;
    - the result is that of the same profile without it, or of formula (P) by hand;
    - a profile that computes every step gives the bits of the plain pipeline with it;
    - put on under an applied profile it works as it does before one, or is refused; so does taking it off;
    - without the profile the pipeline gives the bits of before, with it and without it.
    """
    ready = _with(row)
    before = _on_before(row, ready)
    on = _put_on(row, ready) if row.on is not None else "–"
    pipeline = type(ready.pipe).__name__
    if row.same:
        exactly = "bit for bit" if row.rounding == 0 else f"to {row.rounding:.0e}"
        return Found(pipeline, before, on, f"the profile without it, {exactly}")
    return Found(pipeline, before, on, f"formula (P) by hand, to {max(ROUNDING, row.rounding):.0e}")


def _run(row: Row, small: Small) -> Tensor:
    with row.around():
        return generate(replace(small, call={**small.call, **row.call}), decode=row.decode)


def _with(row: Row) -> Small:
    small = row.small()
    if row.on is not None:
        row.on(small.pipe)
    return small


def _profiles(small: Small) -> list[Profile]:
    """One calibrated at site guided, and residual reuse at output for the same run."""
    guided = calibrated(small, "guided")
    facts = replace(guided.provenance, method={})
    residual = Predictor.residual_reuse(guided.schedule, facts.contexts)
    return [guided, replace(guided, site="output", predictor=residual, provenance=facts)]


@functools.cache
def _profiles_without(small: Callable[[], Small]) -> list[Profile]:
    return _profiles(small())


def _on_before(row: Row, small: Small) -> str:
    without = row.small()
    with watched(small.pipe) as watch:
        plain = _run(row, small)
        assert torch.equal(_run(row, small), plain), "the plain pipeline does not repeat itself"
        with row.around():
            profiles = _profiles(small)
        for profile in profiles:
            with ertacache.apply(small.pipe, profile) as stats:
                cached = _run(row, small)
            assert [bool(step) for step in watch.steps[: T - row.starts]] == _computes(row, profile)
            computed = sum(map(len, watch.steps))
            assert sum(stats.computed.values()) == computed
            assert sum(stats.predicted.values()) == len(profile.provenance.contexts) * (T - row.starts) - computed
            assert not torch.equal(cached, plain), "nothing was predicted"
            with ertacache.apply(small.pipe, all_computed(profile)):
                assert torch.equal(_run(row, small), plain), "computing every step is not the plain pipeline"
            if row.same:
                with ertacache.apply(without.pipe, profile):
                    _check_close(row, cached, _run(replace(row, around=nullcontext), without), "another result")
            else:
                _check_by_hand(row, small, profile, cached)
    assert torch.equal(_run(row, small), plain), "the pipeline is not what it was before"
    return WORKS


def _computes(row: Row, profile: Profile) -> list[bool]:
    """Whether each step of a run runs the denoiser: as the schedule says, and until the history is there."""
    found = list[bool]()
    for i in range(row.starts, T):
        predicts = MASK[i] == "." and sum(found) >= max(1, profile.predictor.needed_levels(i))
        found.append(not predicts)
    return found


def _check_by_hand(row: Row, small: Small, profile: Profile, cached: Tensor) -> None:
    with formula_by_hand(small.pipe, profile):
        by_hand = _run(row, small)
    assert distance(cached, by_hand) <= max(ROUNDING, row.rounding), "not formula (P)"


def _put_on(row: Row, ready: Small) -> str:
    """The combination comes, and goes, while a profile is applied that knows nothing of it."""
    assert row.on is not None
    plain, small = _run(row, ready), row.small()
    bare = _run(row, small)
    for profile in _profiles_without(row.small):
        with ertacache.apply(small.pipe, profile):
            before = _run(row, small)
            row.on(small.pipe)
            if row.conflict:
                with pytest.raises(ertacache.CacheConflict, match=row.conflict) as caught:
                    _run(row, small)
                return f"refused: {caught.value}"
            found = _run(row, small)
            if row.same:
                _check_close(row, found, before, "put on later it is something else")
            else:
                _check_by_hand(row, ready, profile, found)
            if row.off is not None:
                row.off(small.pipe)
                _check_close(row, _run(row, small), before, "taken off it has left something behind")
                row.on(small.pipe)
        _check_close(row, _run(row, small), plain, "the profile has left something behind")
        if row.off is None:
            small = row.small()
        else:
            row.off(small.pipe)
            _check_close(row, _run(row, small), bare, "taken off it has left something behind")
    return WORKS


def _check_close(row: Row, found: Tensor, expected: Tensor, otherwise: str) -> None:
    """Merged weights come back with their rounding, all others bit for bit."""
    assert torch.equal(found, expected) or distance(found, expected) <= row.rounding, otherwise
