"""Whole-step methods as compared methods: calibrated to a share of the steps, then held to the contract of all."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from ertacache.baselines.baseline import Bench
from ertacache.baselines.ertacache import Ertacache, Fitted, FittedPolicy, HiddenErtacache, OfflinePolicy
from ertacache.baselines.profile_method import ProfileMethod
from ertacache.baselines.uniform import Uniform, UniformExtrapolation, UniformHidden, UniformReuse
from ertacache.calibration.prompts import Prompts
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError
from method_contract import check_contract
from pipelines import CALL, CFG_CALL, PROMPTS, VIDEO_CALL, flux, wan

METHODS: list[ProfileMethod] = [
    UniformReuse(), Uniform(), UniformHidden(), UniformExtrapolation(), OfflinePolicy(), Ertacache(), HiddenErtacache(),
    FittedPolicy(), Fitted(),
]  # fmt: skip
UNIFORM = [step in (0, 2, 4, 7, 9) for step in range(10)]


@pytest.fixture(scope="module")
def one_call() -> Bench:
    return Bench(flux(), CALL, Prompts(tuple(PROMPTS), 0))


@pytest.fixture(scope="module")
def two_calls() -> Bench:
    return Bench(flux(False), CFG_CALL, Prompts(tuple(PROMPTS), 0))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.key)
def test_calls_are_those_of_the_schedule(method: ProfileMethod, one_call: Bench):
    planned = method.planned(one_call, 0.5)
    assert planned.profile is not None and planned.share == planned.profile.schedule.K / 10
    computed = planned.profile.schedule.computed
    if method.schedule == "uniform":
        assert computed == Schedule.uniform(10, 5).computed
    executed = check_contract(flux, planned, CALL)
    assert executed.block_calls == [6 * step for step in computed]
    assert executed.denoiser_calls == ([1] * 10 if method.site == "hidden" else [int(step) for step in computed])


@pytest.mark.parametrize("method", [Uniform(), UniformHidden(), Ertacache(), Fitted()], ids=lambda method: method.key)
def test_with_two_calls_per_step_both_follow_the_schedule(method: ProfileMethod, two_calls: Bench):
    planned = method.planned(two_calls, 0.5)
    computed = planned.profile.schedule.computed
    executed = check_contract(lambda: flux(False), planned, CFG_CALL)
    assert executed.block_calls == [12 * step for step in computed]


def test_wan_runs_at_the_hidden_site():
    bench = Bench(wan(), VIDEO_CALL, Prompts(tuple(PROMPTS[:3]), 0))
    executed = check_contract(wan, UniformHidden().planned(bench, 0.5), VIDEO_CALL)
    assert executed.block_calls == [6 * step for step in Schedule.uniform(10, 5).computed]


def test_a_grid_that_cannot_be_changed_is_said():
    pipe = wan()
    assert Ertacache().refusal(pipe, VIDEO_CALL) is None
    pipe.scheduler = EulerDiscreteScheduler()
    assert Ertacache().refusal(pipe, VIDEO_CALL) == "the time grid of EulerDiscreteScheduler cannot be changed"
    assert Fitted().refusal(pipe, VIDEO_CALL) is None


def test_extrapolation_is_a_line_through_two_outputs(one_call: Bench):
    profile = UniformExtrapolation().planned(one_call, 0.5).profile
    grid, table = profile.base_sigmas.double(), profile.predictor
    assert profile.schedule == Schedule.uniform(10, 5) and table.d.abs().max() == 0
    for i in profile.schedule.predicted_steps:
        newest = profile.schedule.last_computed(i)
        older = profile.schedule.last_computed(newest) if newest else None
        alpha = 0.0 if older is None else float((grid[i] - grid[newest]) / (grid[newest] - grid[older]))
        expected = torch.tensor([1 + alpha, -alpha][: table.levels]).float()
        torch.testing.assert_close(table.a[i, 0, 0].flatten(), expected)


def test_a_threshold_decides_where_there_is_one(one_call: Bench):
    by_lambda = OfflinePolicy(threshold=0.3).planned(one_call, None)
    assert by_lambda.profile.provenance.method["threshold"] == 0.3
    assert by_lambda.share == by_lambda.profile.schedule.K / 10


def test_it_has_to_be_planned_first():
    pipe = flux()
    with pytest.raises(CalibrationError, match="uniform has no profile for these 10 steps yet"):
        Uniform().applied(pipe, CALL)
