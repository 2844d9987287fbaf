"""Spectrum: a ridge regression on Chebyshev polynomials of the step, over the features of the last block."""

import numpy as np
import pytest
import torch
from torch import nn

from ertacache.baselines.spectrum import Spectrum, chebyshev
from ertacache.evaluation.execute import execute
from method_contract import FIRST, PIPELINES, check_contract
from pipelines import CALL, VIDEO_CALL, flux, wan

#: five steps, then windows of 2 (W = 2) and of 3 (W = 3)
SCHEDULE = [1, 1, 1, 1, 1, 0, 1, 0, 0, 1]


@pytest.mark.parametrize(("build", "call", "blocks", "calls"), PIPELINES)
def test_blocks_run_on_the_schedule_only(build, call, blocks, calls):
    executed = check_contract(build, Spectrum(1.0), call)
    assert executed.block_calls == [calls * blocks * computed for computed in SCHEDULE]
    assert executed.denoiser_calls == [calls] * 10


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_every_prediction_is_the_formula(weight):
    """Seen at the last block's output: where a step is computed there, and as the head is given it elsewhere."""
    pipe = wan()
    method = Spectrum(1.0, weight=weight)
    seen: list[torch.Tensor] = []
    pipe.transformer.norm_out.register_forward_pre_hook(lambda _, given: seen.append(given[0].double()))
    execute(pipe, method, FIRST, VIDEO_CALL)
    features = np.stack([feature.flatten().numpy() for feature in seen[::2]])
    assert len(features) == 10
    polynomials = np.polynomial.chebyshev.chebvander(np.arange(10) / 5 - 1, 4)
    for i in (5, 7, 8):
        known = [j for j in range(i) if SCHEDULE[j]]
        basis = polynomials[known]
        curve = polynomials[i] @ np.linalg.solve(basis.T @ basis + 0.1 * np.eye(5), basis.T @ features[known])
        older, newest = known[-2:]
        line = features[newest] + (i - newest) / (newest - older) * (features[newest] - features[older])
        np.testing.assert_allclose(features[i], weight * curve + (1 - weight) * line, atol=2e-5)


def test_chebyshev_polynomials():
    expected = np.polynomial.chebyshev.chebvander(np.arange(13) / 6 - 1, 6)
    np.testing.assert_allclose(chebyshev(list(range(13)), 12, 6).numpy(), expected, atol=1e-12)


def test_published_settings_compute_as_many_steps_as_the_paper():
    assert [method.schedule(50).K for method in Spectrum.published()["FluxTransformer2DModel"].values()] == [14, 10]
    assert Spectrum(0.75).schedule(50).computed_steps == (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46)


def test_variants_are_the_papers_predictor_and_the_mixture():
    assert Spectrum(2.0).variants() == (Spectrum(2.0), Spectrum(2.0, weight=1.0))


def test_refusals():
    pipe = flux()
    assert Spectrum().refusal(pipe, {**CALL, "num_inference_steps": 6}) == (
        "it computes the first 5 steps and predicts none of 6"
    )
    assert Spectrum().refusal(pipe, CALL) is None
    pipe.transformer = nn.Linear(2, 2)
    assert Spectrum().refusal(pipe, CALL) == "the blocks of Linear are not known"
