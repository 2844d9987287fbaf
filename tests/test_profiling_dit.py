"""ProfilingDiT as a compared method."""

import math

import pytest
import torch
from diffusers import WanTransformer3DModel

from dummy_pipeline import mixture_pipeline
from ertacache.baselines.baseline import Bench
from ertacache.baselines.delta_dit import DeltaDiT
from ertacache.baselines.profiling_dit import ForegroundProfile, ProfilingDiT, foreground, foreground_scores, otsu
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.errors import CacheConflict, CalibrationError, InvalidArgument
from ertacache.evaluation.execute import execute
from ertacache.evaluation.match_cost import match_cost
from method_contract import FIRST, PIPELINES, check_contract
from pipelines import CALL, PROMPTS, VIDEO_CALL, flux, wan


@pytest.mark.parametrize(("build", "call", "blocks", "branches"), PIPELINES)
def test_background_blocks_run_on_computed_steps_only(build, call, blocks, branches):
    method = ProfilingDiT(background=(0, 2), warm_up=0.2, interval=4)
    executed = check_contract(build, method, call)
    full, rest = branches * blocks, branches * (blocks - 2)
    assert executed.block_calls == [full] * 3 + [rest] * 3 + [full] + [rest] * 3
    assert executed.denoiser_calls == [branches] * 10


@pytest.mark.parametrize(("build", "call", "blocks", "branches"), PIPELINES)
def test_calibration_scores_every_block(build, call, blocks, branches):
    bench = Bench(build(), call, Prompts(tuple(PROMPTS[:2]), 0))
    method = ProfilingDiT().calibrated(bench)
    assert method.scores is not None and len(method.scores) == blocks
    assert all(0 < score < math.inf for score in method.scores)
    assert len(method.background_blocks()) == round(0.7 * blocks)
    assert method == ProfilingDiT().calibrated(Bench(build(), call, Prompts(tuple(PROMPTS[:2]), 0)))
    plain = execute(build(), None, FIRST, call, decode=False)[0]
    assert torch.equal(execute(bench.pipe, None, FIRST, call, decode=False)[0], plain)


def test_one_range_is_what_delta_dit_does():
    # Background blocks that are neighbours and an equal spacing: Δ-DiT with its rear blocks in every step.
    ours = execute(flux(), ProfilingDiT(background=(3, 4, 5), warm_up=0.0, interval=4), FIRST, CALL, decode=False)[0]
    same = execute(flux(), DeltaDiT(skipped=0.375, interval=4, gate=1.0), FIRST, CALL, decode=False)[0]
    assert torch.equal(ours, same)


def test_the_blocks_with_the_lowest_scores_are_the_background():
    method = ProfilingDiT(scores=(1.0, 0.4, 2.0, 0.1, 0.9, 1.5), share=0.5)
    assert method.background_blocks() == (1, 3, 4)
    assert method.at(0.0).background_blocks() == ()
    assert method.at(0.01).background_blocks() == (3,)
    assert method.at(1.0).background_blocks() == (0, 1, 2, 3, 4, 5)


def test_computed_steps():
    uniform = ProfilingDiT()
    assert uniform.computed_steps(50) == (0, 1, 2, 3, 4, 5, 6, 12, 18, 24, 30, 36, 42, 48)
    # Eq. 15 from 12 to 2 over the steps 6 to 49: 12, 9.21, 7.12, 5.49, 4.33, 3.40, 2.70.
    falling = ProfilingDiT(interval=12, interval_end=2).computed_steps(50)
    assert falling == (0, 1, 2, 3, 4, 5, 6, 18, 27, 34, 39, 43, 46, 49)
    assert ProfilingDiT(warm_up=1.0).computed_steps(3) == (0, 1, 2)


def test_published_lists_on_forty_blocks():
    method = ProfilingDiT.published()["WanTransformer3DModel"]["14B"]
    pipe = wan()
    reason = method.refusal(pipe, VIDEO_CALL)
    assert reason == "the background list names block 3, and this denoiser has 3 blocks"
    pipe.transformer = WanTransformer3DModel.from_config({**pipe.transformer.config, "num_layers": 40}).eval()
    assert method.refusal(pipe, VIDEO_CALL) is None
    executed = execute(pipe, method, FIRST, {**VIDEO_CALL, "num_inference_steps": 9})[1]
    # Warm-up 0.12 · 9 = 1 step; 28 of 40 blocks are skipped, in two branches.
    assert executed.block_calls == [80, 80] + [24] * 5 + [80, 24]


@pytest.mark.parametrize("target", [0.5, 0.33])
def test_the_knob_reaches_the_costs_of_interest(target):
    scores = tuple(n / 100 for n in range(100))
    method = ProfilingDiT(scores=scores)

    def cost(method: ProfilingDiT) -> float:
        computed, T = len(method.computed_steps(30)), 30
        return (computed + (T - computed) * (1 - len(method.background_blocks()) / 100)) / T

    assert abs(match_cost(method, target, cost).cost - target) < 0.01


def test_otsu_cuts_where_the_variance_between_the_parts_is_largest():
    values = torch.tensor([9.0, 1.0, 2.0, 10.0, 1.5, 9.5, 2.5])
    assert otsu(values) == 2.5
    with pytest.raises(CalibrationError, match="treats all tokens alike"):
        otsu(torch.ones(5))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_smaller_part_along_the_first_component_is_the_foreground(sign):
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(40, 6, generator=generator) * 0.1 + 5.0
    objects = torch.zeros(40, dtype=torch.bool)
    objects[7:17] = True
    residual[objects] += sign * torch.tensor([3.0, 0.0, -4.0, 0.0, 0.0, 0.0])
    assert torch.equal(foreground(residual), objects)


def test_scores_compare_the_work_on_the_foreground_with_its_size():
    energy = torch.tensor([[1.0, 1.0, 1.0, 1.0], [6.0, 1.0, 1.0, 0.0], [0.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([True, False, False, False])
    assert foreground_scores(energy, mask).tolist() == [1.0, 3.0, 0.0, 0.0]


def test_the_profile_is_that_of_the_conditional_branch():
    """Block updates and stack residuals of a run, collected with torch's own forward hooks."""
    pipe, calls = wan(), []
    for block in pipe.transformer.blocks:
        block.register_forward_hook(lambda _, args, output: calls.append((args[0], output)))
    profile = ForegroundProfile()
    run_pipeline(pipe, FIRST, profile, VIDEO_CALL, hidden=True, decode=False)
    steps = [calls[6 * i : 6 * i + 3] for i in range(10)]  # two calls of three blocks per step; the first is cond
    energy = torch.stack([sum(((s[b][1] - s[b][0])[0] ** 2).sum(-1) for s in steps) for b in range(3)])
    residual = sum((s[2][1] - s[0][0])[0] for s in steps[5:])
    expected = foreground_scores(energy, foreground(residual))
    assert torch.allclose(profile.scores[0], expected, rtol=1e-4)
    assert len(profile.scores) == 1


def test_a_profile_needs_the_block_stack():
    with pytest.raises(CacheConflict, match="record with hidden=True"):
        run_pipeline(wan(), FIRST, ForegroundProfile(), VIDEO_CALL)


def test_given_background_blocks_are_not_calibrated_over():
    method = ProfilingDiT(background=(0,))
    assert method.calibrated(Bench(wan(), VIDEO_CALL, FIRST)) is method
    with pytest.raises(InvalidArgument, match="no share of them to turn"):
        method.at(0.5)


def test_it_has_to_be_calibrated_first():
    assert ProfilingDiT().refusal(wan(), VIDEO_CALL) is None
    with pytest.raises(InvalidArgument, match=r"call calibrated\(bench\), or give background"):
        ProfilingDiT().applied(wan(), VIDEO_CALL)


def test_refusals():
    assert ProfilingDiT().refusal(mixture_pipeline(), VIDEO_CALL) == "its blocks are not known"
    reason = ProfilingDiT(scores=(1.0,) * 40).refusal(wan(), VIDEO_CALL)
    assert reason == "it was calibrated on 40 blocks, and this denoiser has 3"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"share": -0.5}, "share is -0.5; choose a share from 0 to 1"),
        ({"warm_up": 2.0}, "warm_up is 2; choose a share from 0 to 1"),
        ({"interval": 1}, "interval is 1; choose 2 or more"),
        ({"interval": 4, "interval_end": 5}, "interval_end is 5; choose 1 to interval, which is 4"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(InvalidArgument, match=message):
        ProfilingDiT(**setting)
