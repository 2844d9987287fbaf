"""MagCache of diffusers as a compared method, with our own measurement of its ratios."""

import ast

import pytest
import torch
from diffusers import MagCacheConfig

from ertacache.baselines.baseline import Bench
from ertacache.baselines.mag_cache import MagCache, measure_ratios
from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.errors import CacheConflict, CalibrationError
from ertacache.evaluation.execute import execute
from method_contract import FIRST, PIPELINES, check_contract
from pipelines import CALL, PROMPTS, flux

#: Each step doubles the magnitude that diffusers expects: errors 1, 3, 7, 15 after a computed step, sums 1, 4, 11, 26.
DOUBLING = (1.0, *[2.0] * 9)


def _bench(pipe, call):
    return Bench(pipe, call, Prompts(tuple(PROMPTS), 0))


@pytest.mark.parametrize(("build", "call", "blocks", "branches"), PIPELINES)
def test_steps_are_reused_until_the_error_passes_the_threshold(build, call, blocks, branches):
    executed = check_contract(build, MagCache(5.0, retention_ratio=0.2, ratios=DOUBLING), call)
    schedule = [1, 1, 0, 0, 1, 0, 0, 1, 0, 0]  # two of ten are retained
    assert executed.block_calls == [branches * blocks * computed for computed in schedule]
    assert executed.denoiser_calls == [branches] * 10


def test_never_more_than_max_skip_steps_in_a_row():
    calls = execute(flux(), MagCache(2.0, retention_ratio=0.2, ratios=(1.0,) * 10), FIRST, CALL)[1].block_calls
    assert calls == [6, 6, 0, 0, 0, 0, 0, 6, 0, 0]
    method = MagCache(2.0, max_skip_steps=1, retention_ratio=0.0, ratios=(1.0,) * 10)
    assert execute(flux(), method, FIRST, CALL)[1].block_calls == [6, 0] * 5


def test_no_threshold_computes_everything():
    assert execute(flux(), MagCache(0.0, ratios=DOUBLING), FIRST, CALL)[1].block_calls == [6] * 10


@pytest.mark.parametrize(("build", "call", "blocks", "branches"), PIPELINES)
def test_images_are_those_of_diffusers_own_config(build, call, blocks, branches):
    method = MagCache(0.3, 4, 0.1, ratios=tuple(1 + 0.01 * n for n in range(10)))
    image = execute(build(), method, FIRST, call)[0]
    pipe = build()
    plain = call_pipeline(pipe, FIRST, call)
    pipe.transformer.enable_cache(MagCacheConfig(0.3, 4, 0.1, 10, list(method.ratios)))
    assert torch.equal(image, call_pipeline(pipe, FIRST, call))
    assert not torch.equal(image, plain)


@pytest.mark.parametrize(("build", "call", "blocks", "branches"), PIPELINES)
def test_ratios_are_those_that_diffusers_prints(build, call, blocks, branches, capsys):
    pipe = build()
    found = measure_ratios(_bench(pipe, call), prompts=2)
    pipe.transformer.enable_cache(MagCacheConfig(num_inference_steps=10, calibrate=True))
    for n in range(2):
        call_pipeline(pipe, Prompts((PROMPTS[n],), n), call)
    printed = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines() if line.startswith("[1.0")]
    assert len(printed) == 2 * branches
    assert found == pytest.approx(torch.tensor(printed, dtype=torch.float64).mean(0).tolist(), rel=1e-5)
    assert found[0] == 1.0 and max(abs(ratio - 1) for ratio in found) > 1e-3


def test_calibrated_measures_unless_ratios_are_given():
    bench = _bench(flux(), CALL)
    method = MagCache(0.3, calibration_prompts=1).calibrated(bench)
    assert method == MagCache(0.3, ratios=measure_ratios(bench, 1), calibration_prompts=1)
    assert method.calibrated(bench) is method


def test_the_published_setting_runs():
    method = MagCache.published()["FluxTransformer2DModel"]["fast"]
    assert (method.threshold, method.max_skip_steps, method.retention_ratio) == (0.24, 5, 0.1)
    assert len(method.ratios) == 28 and method.ratios[:2] == pytest.approx((1.0, 1.21094))
    # Ten of the 28 ratios are left: 1, 1.078, 1.031, 1.031, 1.016, 1, 1, .996, .965, .891 from step 0 on.
    calls = execute(flux(), method, FIRST, CALL)[1].block_calls
    assert calls == [6, 0, 0, 6, 0, 0, 0, 0, 0, 6]


def test_without_ratios_it_says_how_to_get_them():
    with pytest.raises(CalibrationError, match=r"no ratios for this FluxTransformer2DModel; .*calibrated\(bench\)"):
        MagCache().applied(flux(), CALL)


def test_ratios_that_are_not_finite_are_refused():
    pipe = flux()
    with torch.no_grad():
        pipe.transformer.single_transformer_blocks[-1].proj_out.bias.fill_(torch.nan)
    with pytest.raises(CalibrationError, match="a magnitude ratio is NaN or infinite; run the pipeline in a wider"):
        measure_ratios(_bench(pipe, CALL), 1)


def test_what_diffusers_cannot_cache_is_refused():
    pipe = flux()
    pipe.transformer = torch.nn.Linear(1, 1)
    assert MagCache().refusal(pipe, CALL) == "Linear has no enable_cache"


def test_a_denoiser_without_known_blocks_is_refused():
    from dummy_pipeline import NamedMixtureModule, mixture_pipeline

    pipe = mixture_pipeline()
    pipe.transformer = NamedMixtureModule(pipe.transformer.mixture)
    assert MagCache().refusal(pipe, CALL) == "the blocks of NamedMixtureModule are not known"


def test_a_second_cache_is_refused():
    pipe = flux()
    method = MagCache(ratios=DOUBLING)
    with (
        method.applied(pipe, CALL),
        pytest.raises(CacheConflict, match="already enabled on this FluxTransformer2DModel"),
        method.applied(pipe, CALL),
    ):
        pass
