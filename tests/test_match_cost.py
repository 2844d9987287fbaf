"""Bisection on a method's knob, with costs that are known."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from ertacache.baselines.baseline import Baseline, Knob
from ertacache.baselines.fewer_steps import FewerSteps
from ertacache.baselines.first_block_cache import FirstBlockCache
from ertacache.errors import InvalidArgument
from ertacache.evaluation.execute import execute
from ertacache.evaluation.match_cost import Matched, best_variant, match_cost
from method_contract import FIRST
from pipelines import CALL, flux


@dataclass(frozen=True)
class Turned(Baseline):
    """Does nothing; its cost is made up by the tests."""

    key: ClassVar[str] = "turned"
    knob: ClassVar[Knob] = Knob("value", 0.0, 2.0)

    value: float = 0.0

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class Falling(Turned):
    knob: ClassVar[Knob] = Knob("value", 1.0, 0.05)


@dataclass(frozen=True)
class Whole(Turned):
    knob: ClassVar[Knob] = Knob("value", 1, 15, whole=True)


def falling_cost(method: Any) -> float:
    return 1 - method.value / 2


@pytest.mark.parametrize("target", [0.9, 0.5, 0.37, 0.1, 0.01])
def test_it_finds_the_value(target):
    matched = match_cost(Turned(), target, falling_cost)
    assert matched.cost == pytest.approx(target, abs=0.004)
    assert matched.method == Turned(2 * (1 - matched.cost))


def test_a_knob_may_fall():
    matched = match_cost(Falling(), 0.4, lambda method: method.value)
    assert matched.cost == matched.method.value == pytest.approx(0.4, abs=0.004)


def test_the_probes_halve_the_interval_and_stop_close_by():
    matched = match_cost(Turned(), 0.375, falling_cost)
    assert matched.probes == ((0.0, 1.0), (2.0, 0.0), (1.0, 0.5), (1.5, 0.25), (1.25, 0.375))


def test_a_jump_takes_the_nearer_side_and_few_probes():
    """Costs of a cache come in steps; no value gives 0.5 here."""
    matched = match_cost(Turned(), 0.5, lambda method: 0.8 if method.value < 0.7 else 0.3)
    assert matched.cost == 0.3
    assert matched.method.value == pytest.approx(0.7, abs=2 / 2**9)
    assert len(matched.probes) == 11


def test_a_tie_takes_the_value_that_caches_least():
    matched = match_cost(Turned(), 0.5, lambda method: 0.75 if method.value < 1.2 else 0.25)
    assert matched.method.value == 0.0


@pytest.mark.parametrize("target", [share / 50 for share in range(1, 50)])
def test_a_whole_knob_finds_the_nearest_of_all_values(target):
    seen: list[float] = []

    def cost(method: Any) -> float:
        assert isinstance(method.value, int)
        seen.append(method.value)
        return 1 / method.value

    matched = match_cost(Whole(), target, cost)
    best = min(abs(1 / value - target) for value in range(1, 16))
    # Within the tolerance at which another probe is not worth it.
    assert abs(matched.cost - target) <= max(best, 0.004)
    assert matched.cost == 1 / matched.method.value
    assert len(seen) == len(set(seen)) <= 7, "a value was tried twice, or too many"


@pytest.mark.parametrize(("target", "value", "reached"), [(0.95, 0.0, 0.8), (0.05, 2.0, 0.3)])
def test_a_cost_out_of_reach_takes_the_end(target, value, reached):
    matched = match_cost(Turned(), target, lambda method: 0.8 - 0.25 * method.value)
    assert (matched.method, matched.cost) == (Turned(value), pytest.approx(reached))
    assert len(matched.probes) <= 2


@pytest.mark.parametrize("target", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_target_that_is_no_share_is_refused(target):
    with pytest.raises(InvalidArgument, match=r"cost is .*; choose a share of the uncached run between 0 and 1"):
        match_cost(Turned(), target, falling_cost)


def test_a_real_method_is_matched_by_counted_operations():
    pipe = flux()
    call = {**CALL, "num_inference_steps": 6}

    def flops(method: Baseline | None) -> int:
        return sum(execute(pipe, method, FIRST, call, flops=True, decode=False)[1].flops)

    everything = flops(None)
    matched = match_cost(FewerSteps(), 0.5, lambda method: flops(method) / everything)
    assert matched.cost == 0.5
    assert matched.method.call(call)["num_inference_steps"] == 3


def test_execute_runs_the_method_and_takes_it_off():
    pipe = flux()
    plain, every = execute(pipe, None, FIRST, CALL)
    images, executed = execute(pipe, FirstBlockCache(2.0), FIRST, CALL, keep_outputs=True)
    assert executed.block_calls == [6] + [1] * 9
    assert len(executed.outputs) == 10
    assert not torch.equal(images, plain)
    again, after = execute(pipe, None, FIRST, CALL)
    assert torch.equal(again, plain)
    assert after.signature == every.signature
    assert after.outputs == []


def test_execute_makes_the_call_of_the_method():
    latents, executed = execute(flux(), FewerSteps(0.3), FIRST, CALL, decode=False)
    assert executed.denoiser_calls == [1] * 3
    assert torch.equal(latents, executed.latents)


def variant(value: float, cost: float) -> Matched:
    return Matched(Turned(value), cost, ())


def test_the_best_variant_deviates_least_among_those_that_cost_no_more():
    quality = {0.1: 3.0, 0.2: 1.0, 0.3: 2.0}
    variants = [variant(0.1, 0.5), variant(0.2, 0.55), variant(0.3, 0.53)]
    found = best_variant(variants, 0.5, lambda method: quality[method.value])
    assert found.method == Turned(0.3)
    found = best_variant([*variants, variant(0.4, 0.4)], 0.5, lambda method: quality.get(method.value, 0.0))
    assert found.method == Turned(0.4)


def test_where_all_cost_more_the_cheapest_are_compared():
    variants = [variant(0.1, 0.9), variant(0.2, 0.7), variant(0.3, 0.73)]
    assert best_variant(variants, 0.5, lambda method: -method.value).method == Turned(0.3)


def test_nothing_is_measured_where_there_is_no_choice():
    def never(method: Baseline) -> float:
        raise AssertionError

    assert best_variant([variant(0.1, 0.9)], 0.5, never).cost == 0.9
    assert best_variant([variant(0.1, 0.9), variant(0.2, 0.7)], 0.5, never).cost == 0.7
    assert best_variant([variant(0.1, 0.9), variant(0.2, 0.5)], 0.5, never).cost == 0.5
