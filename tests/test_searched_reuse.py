"""GCache and BudCache: reuse on schedules that were searched for on calibration prompts."""

import itertools
import math
import random
from dataclasses import replace
from types import MethodType

import pytest
import torch
from torch import nn

from ertacache.baselines.baseline import Bench
from ertacache.baselines.budcache import BudCache, anneal
from ertacache.baselines.gcache import GCache, bernstein, shortest_path
from ertacache.baselines.uniform import UniformHidden, UniformReuse
from ertacache.calibration.prompts import Prompts
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError
from ertacache.evaluation.execute import execute
from method_contract import FIRST, PIPELINES, check_contract
from pipelines import CALL, PROMPTS, flux

STEPS = (0, 1, 4, 7)
SHORT = {**CALL, "num_inference_steps": 6}


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(flux(), SHORT, Prompts(tuple(PROMPTS), 0))


@pytest.mark.parametrize("reused", ["hidden", "residual", "plain"])
@pytest.mark.parametrize(("build", "call", "blocks", "calls"), PIPELINES)
def test_calls_follow_the_schedule(build, call, blocks, calls, reused):
    executed = check_contract(build, GCache(reused, steps=STEPS), call)
    assert executed.block_calls == [calls * blocks * (i in STEPS) for i in range(10)]
    assert executed.denoiser_calls == (
        [calls] * 10 if reused == "hidden" else [calls * (i in STEPS) for i in range(10)]
    )


@pytest.mark.parametrize(("reused", "same"), [("hidden", UniformHidden()), ("plain", UniformReuse())])
def test_on_even_steps_it_is_the_uniform_cache(reused, same, bench):
    steps = Schedule.uniform(6, 3).computed_steps
    ours = execute(bench.pipe, BudCache(reused, steps=steps), FIRST, SHORT, decode=False)[0]
    theirs = execute(bench.pipe, same.planned(bench, 0.5), FIRST, SHORT, decode=False)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_residual_is_that_of_the_solvers_latent():
    pipe, latents = flux(), []
    step = pipe.scheduler.step

    def noted(_, model_output, timestep, sample, **options):
        latents.append(sample)
        return step(model_output, timestep, sample, **options)

    pipe.scheduler.step = MethodType(noted, pipe.scheduler)
    outputs = execute(pipe, BudCache("residual", steps=STEPS), FIRST, CALL, keep_outputs=True)[1].outputs
    for i in range(10):
        j = max(j for j in STEPS if j <= i)
        torch.testing.assert_close(outputs[i], latents[i] + (outputs[j] - latents[j]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("K", range(1, 8))
def test_the_path_is_the_best_of_all(K):
    errors = torch.rand(8, 8, dtype=torch.float64)

    def total(steps):
        newest = [max(j for j in steps if j <= i) for i in range(8)]
        return sum(float(errors[i, j]) for i, j in enumerate(newest) if i != j)

    best = min(((0, *rest) for rest in itertools.combinations(range(1, 8), K - 1)), key=total)
    assert shortest_path(errors, K) == best


def test_bernstein_polynomials():
    constant = bernstein(torch.full((4,), 2.5), 9)
    torch.testing.assert_close(constant, torch.full((9,), 2.5, dtype=torch.float64))
    line = bernstein(torch.tensor([0.0, 1.0, 2.0, 3.0]), 6)
    torch.testing.assert_close(line, 3 * torch.arange(6, dtype=torch.float64) / 6)


@pytest.mark.parametrize("reused", ["hidden", "plain"])
def test_gcache_takes_the_best_of_its_paths(bench, reused):
    method = GCache(reused, prompts=2, tries=8)
    found = method.planned(bench, 0.5)
    assert found.share == 0.5 and len(found.steps) == 3 and found.steps[0] == 0
    errors = method._errors(bench)
    assert errors.diagonal().abs().max() < 1e-9 and torch.allclose(errors, errors.T)
    unweighted = shortest_path(errors, 3)
    probed = Prompts(tuple(PROMPTS[:2]), 0)
    reference = execute(bench.pipe, None, probed, SHORT, decode=False)[0]

    def loss(steps):
        return method.distance(
            execute(bench.pipe, replace(method, steps=steps), probed, SHORT, decode=False)[0], reference
        )

    assert loss(found.steps) <= loss(unweighted)
    assert method.planned(bench, 0.5) == found


def test_the_errors_are_the_l1_distances_of_what_is_reused(bench):
    executed = execute(bench.pipe, None, FIRST, SHORT, keep_outputs=True)[1]
    outputs = torch.stack(executed.outputs).flatten(1).double()
    expected = (outputs[:, None] - outputs[None]).abs().sum(-1)
    torch.testing.assert_close(GCache("plain", prompts=1)._errors(bench), expected)


def test_annealing_finds_the_best_of_a_small_space():
    """Two thousand cold moves and the local ones, against all schedules."""
    values = random.Random(3)
    table = {steps: values.random() for steps in ((0, *rest) for rest in itertools.combinations(range(1, 9), 3))}
    found = anneal(9, 4, table.__getitem__, random.Random(0), 2000, 5)
    assert table[found] == min(table.values())


def test_annealing_keeps_the_start_and_the_budget():
    asked: list[tuple[int, ...]] = []

    def loss(steps):
        asked.append(steps)
        return float(sum(steps))

    best = anneal(20, 9, loss, random.Random(1), 200, 20)
    assert best == tuple(range(9))  # of least sum
    assert all(len(set(steps)) == 9 and steps[:2] == (0, 1) and list(steps) == sorted(steps) for steps in asked)
    assert anneal(6, 6, loss, random.Random(1), 50, 2) == tuple(range(6))
    assert anneal(6, 1, loss, random.Random(1), 50, 2) == (0,)


def test_budcache_is_planned_within_its_budget_and_again_the_same(bench):
    method = BudCache("plain", prompts=2, iterations=10, rounds=1)
    found = method.planned(bench, 0.5)
    assert len(found.steps) == 3 and found.share == 0.5
    assert method.planned(bench, 0.5) == found
    latents = torch.tensor([[1.0, 2.0]])
    assert method.distance(latents, torch.tensor([[0.0, 4.0]])) == 2.5
    assert method.distance(latents * math.nan, latents) == math.inf


def test_variants_and_refusals(bench):
    assert GCache().variants() == (GCache(), GCache("plain"))
    assert BudCache("plain").variants() == (BudCache("plain"), BudCache())
    pipe = flux()
    with pytest.raises(CalibrationError, match="gcache has no schedule for these 10 steps yet"):
        GCache().applied(pipe, CALL)
    with pytest.raises(CalibrationError, match="budcache has no schedule for these 6 steps yet"):
        BudCache(steps=(0, 8)).applied(pipe, SHORT)
    assert GCache().refusal(pipe, {**CALL, "num_inference_steps": 2}) == "a run of 2 steps leaves nothing to choose"
    pipe.transformer = nn.Linear(2, 2)
    assert GCache().refusal(pipe, CALL) == "the blocks of Linear are not known"
    assert GCache("plain").refusal(pipe, CALL) is None
