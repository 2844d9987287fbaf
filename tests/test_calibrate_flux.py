"""Calibration of a real FluxPipeline with random weights: site `hidden`, one and two branches, half precision."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ertacache.calibration.assemble import fit
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import evaluate
from ertacache.calibration.closed_loop import ClosedLoop
from ertacache.calibration.lockstep import Lockstep
from ertacache.calibration.method import Method
from ertacache.calibration.pipeline_run import Final, run_pipeline
from ertacache.calibration.solving import Solving
from ertacache.core.schedule import Schedule
from ertacache.profile.profile import Profile
from ertacache.runtime.player import Player
from ertacache.runtime.run_stats import RunStats
from pipelines import CALL, CFG_CALL, PROMPTS, flux

MASK = "#..#.#..##"


@pytest.fixture(scope="module")
def one_branch() -> Any:
    return flux()


@pytest.fixture(scope="module")
def two_branches() -> Any:
    return flux(guidance_embeds=False)


def calibrator(pipe: Any, **options: Any) -> Calibrator:
    call = CFG_CALL if not pipe.transformer.config.guidance_embeds else CALL
    return Calibrator(pipe, PROMPTS, choose=0.25, seed=0, call=call, **options)


def closed_loop(run: Calibrator, method: Method) -> Tensor:
    """Where one more closed loop on the calibration prompts ends."""
    (seat,), lockstep = [run._seat(method, 0, None)], Lockstep(1)
    solving = Solving(method, lockstep, run.family.channel_axis)
    loop = ClosedLoop(solving, run.reference.contexts, run.reference.branches, [seat], lockstep)
    run_pipeline(run.pipe, run.parts.fitted, loop, run.call, hidden=method.site == "hidden", decode=False)
    assert seat.final is not None
    return seat.final


def played(run: Calibrator, profile: Profile) -> tuple[Tensor, RunStats]:
    stats = RunStats()
    final = Final(Player(profile, stats))
    run_pipeline(run.pipe, run.parts.fitted, final, run.call, hidden=profile.site == "hidden", decode=False)
    return final.latents, stats


@pytest.mark.parametrize("pipe", ["one_branch", "two_branches"])
@pytest.mark.parametrize("activation", ["linear", "sigmoid"])
def test_at_site_hidden_what_was_fitted_is_what_is_run(pipe: str, activation: Any, request: pytest.FixtureRequest):
    pipe = request.getfixturevalue(pipe)
    run = calibrator(pipe)
    profile = calibrate(
        pipe, PROMPTS, schedule=MASK, site="hidden", timesteps=0.3, rectifier="channel", activation=activation,
        show_progress=False, **run.call,
    )  # fmt: skip
    method = Method("residual", "hidden", Schedule.from_mask(MASK), 0, rectifier="channel", strength=0.3)
    grid = fit(run, replace(method, rectifier=None)).grid
    assert grid is not None
    plan = replace(method, strength=0.0, activation=activation, grid=tuple(grid.tolist()))
    latents, stats = played(run, profile)
    torch.testing.assert_close(latents, closed_loop(run, plan), rtol=1e-5, atol=1e-5)
    assert float((latents - run.reference.latents).abs().max()) > 1e-3
    assert stats.computed == dict.fromkeys(profile.provenance.contexts, 5)
    assert profile.rectifier is not None and profile.rectifier.kappa.shape[2:] == (1, 16)
    assert profile.provenance.channel_axis == -1 and profile.provenance.latent_shape == (64, 16)


def test_the_fit_of_both_branches_is_what_is_run(two_branches: Any):
    run = calibrator(two_branches)
    schedule = Schedule.from_mask(MASK)
    method = Method("fitted", "guided", schedule, 2, branches=True, ridge=1e-3, rectifier="channel")
    profile = evaluate(run, method).profile
    latents, stats = played(run, profile)
    expected = closed_loop(run, method)
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)
    assert profile.predictor.sources == ("guided", "cond", "uncond") and stats.predicted == {"cond": 5, "uncond": 5}
    assert profile.provenance.guidance_weight == pytest.approx(4.0, rel=1e-3)


def test_facts_of_embedded_guidance(one_branch: Any):
    reference = calibrator(one_branch).reference
    assert (reference.contexts, reference.weights, reference.embedded) == (("cond",), (None,), 4.0)
    assert reference.guided_l1(0).shape == (10, 3)


def residuals(run: Calibrator, schedule: Schedule) -> Tensor:
    """[T, N, *] what the blocks truly add in the conditional call of every step, along the cached trajectory."""
    entries: list[Tensor] = []
    added: list[Tensor] = []
    module = run.pipe.transformer
    handles = [
        module.transformer_blocks[0].register_forward_pre_hook(
            lambda module, args, kwargs: entries.append(kwargs["hidden_states"]), with_kwargs=True
        ),
        module.single_transformer_blocks[-1].register_forward_hook(
            lambda module, args, output: added.append(output[1] - entries[-1])
        ),
    ]
    closed_loop(run, Method("residual", "hidden", schedule, levels=0))
    for handle in handles:
        handle.remove()
    # At a predicted step each call comes twice: once in truth, then with the reused residual.
    calls = [1 if computed else 2 for computed in schedule.computed for _ in run.reference.contexts]
    starts = [sum(calls[:n]) for n in range(0, len(calls), len(run.reference.contexts))]
    return torch.stack([added[start] for start in starts])


@pytest.mark.slow
@pytest.mark.parametrize("pipe", ["one_branch", "two_branches"])
def test_the_policy_at_site_hidden_is_algorithm_2_on_the_stack(pipe: str, request: pytest.FixtureRequest):
    """Its decisions, replayed: at each step the relative error of the reused residual is below λ or not."""
    pipe = request.getfixturevalue(pipe)
    run = calibrator(pipe)
    norms = residuals(run, Schedule.all_computed(10)).abs().sum((1, 2, 3))
    torch.testing.assert_close(run.hidden_l1(0).sum(1), norms.double(), rtol=1e-4, atol=1e-4)
    seen: set[Schedule] = set()
    for threshold in (0.45, 0.7):
        asked = Method("residual", "hidden", levels=0, threshold=threshold)
        schedule = run.policy(asked)
        true = residuals(run, schedule)
        held = [0, *(schedule.last_computed(i) for i in range(1, 10))]
        errors = (true[held] - true).abs().sum((1, 2, 3)) / norms
        assert [i in (0, 9) or float(errors[i]) >= threshold for i in range(10)] == list(schedule.computed)
        assert calibrator(pipe, batch_size=2).policy(asked) == schedule
        seen.add(schedule)
    assert len(seen) == 2 and all(2 < schedule.K < 10 for schedule in seen)


def test_half_precision_runs_as_it_was_fitted(one_branch: Any):
    pipe = flux().to(torch.bfloat16)
    run = calibrator(pipe)
    method = Method("fitted", "guided", Schedule.from_mask(MASK), 2, ridge=1e-3)
    profile = evaluate(run, method).profile
    assert profile.provenance.dtype == "torch.bfloat16"
    expected = closed_loop(run, method)
    assert float((played(run, profile)[0] - expected).abs().max()) < 0.05 * float(expected.abs().max())
