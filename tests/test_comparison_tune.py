"""How a method comes to its cost: on how many prompts it is counted, and that fewer counts give the same figures."""

from typing import Any

import pytest

from ertacache.baselines.baseline import Baseline, Bench
from ertacache.baselines.first_block_cache import FirstBlockCache
from ertacache.baselines.t_gate import TGate
from ertacache.baselines.taylor_seer import TaylorSeer
from ertacache.calibration.prompts import Prompts
from ertacache.evaluation.comparison import measure
from ertacache.evaluation.comparison.entrant import Entrant, Tuned
from ertacache.evaluation.comparison.measure import Prices
from ertacache.evaluation.comparison.tune import PROBED, probed, tune
from ertacache.evaluation.execute import execute
from ertacache_zoo import catalogue
from pipelines import CALL, flux

TEXTS = Prompts(tuple(catalogue.calibration_prompts(10)), 3)
#: Decides at run time, at a threshold at which prompts differ; and one that does not.
ADAPTIVE, STATIC = FirstBlockCache(threshold=0.5), TaylorSeer(interval=3)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return flux()


def counted(pipe: Any, method: Baseline | None, prompts: Prompts) -> list[list[int]]:
    """Operations of every step of every prompt, all of them counted."""
    return [execute(pipe, method, one, CALL, flops=True, decode=False)[1].flops for one in prompts.batches(1)]


class Runs:
    """Calls of `execute`: how many there were, and in how many operations were counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all = self.counted = 0
        monkeypatch.setattr(measure, "execute", self._execute)

    def _execute(self, *args: Any, flops: bool = False, **options: Any) -> Any:
        self.all += 1
        self.counted += flops
        return execute(*args, flops=flops, **options)


def test_a_knob_is_turned_on_eight_prompts_where_the_method_decides_at_run_time() -> None:
    assert PROBED == 8
    assert probed(ADAPTIVE, TEXTS) == TEXTS.first(8) and probed(STATIC, TEXTS) == TEXTS.first(1)


def test_the_cost_of_a_method_that_decides_is_that_of_counting_every_run(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = counted(pipe, ADAPTIVE, TEXTS.first(8))
    (plain,) = counted(pipe, None, TEXTS.first(1))
    assert len({tuple(steps) for steps in every}) > 1  # the prompts differ
    prices, runs = Prices(pipe, CALL), Runs(monkeypatch)
    assert prices.total(ADAPTIVE, TEXTS.first(8)) == pytest.approx(sum(map(sum, every)) / (8 * sum(plain)), rel=1e-12)
    # The uncached run, the first prompt, and a prompt with a step of a kind that the first had not.
    assert runs.counted <= 3 < runs.all
    tuned = Tuned(Entrant("one", ADAPTIVE), ADAPTIVE)
    for one, steps in zip(TEXTS.first(8).batches(1), every, strict=True):
        run = execute(pipe, ADAPTIVE, one, CALL, decode=False)[1]
        assert prices.of(tuned, one, run) == [round(flops / (sum(plain) / len(plain)), 4) for flops in steps]


def test_one_prompt_says_what_a_method_costs_that_does_not_decide(pipe: Any) -> None:
    every = counted(pipe, STATIC, TEXTS.first(4))
    assert len({tuple(steps) for steps in every}) == 1
    bench, prices = Bench(pipe, CALL, TEXTS), Prices(pipe, CALL)
    found = tune(Entrant("static", STATIC), bench, prices, lambda _: None)
    (plain,) = counted(pipe, None, TEXTS.first(1))
    assert found.cost == pytest.approx(sum(every[0]) / sum(plain), rel=1e-12)


def test_who_cannot_run_says_why_instead(pipe: Any) -> None:
    found = tune(Entrant("gate", TGate(), 0.5), Bench(pipe, CALL, TEXTS), Prices(pipe, CALL), lambda _: None)
    assert found.refusal is not None and "joint" in found.refusal and found.cost is None
