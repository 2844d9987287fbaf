"""L2P: per-step weights on all earlier features, trained open loop."""

import pytest
import torch
from torch import nn

from ertacache.baselines.baseline import Bench
from ertacache.baselines.l2p import L2P, fitted_weights
from ertacache.calibration.prompts import Prompts
from ertacache.errors import CalibrationError
from ertacache.evaluation.execute import execute
from method_contract import FIRST, PIPELINES, check_contract
from pipelines import CALL, PROMPTS, VIDEO_CALL, flux, wan

#: a start of two, then every third step
SCHEDULE = [1, 1, 0, 0, 1, 0, 0, 1, 0, 0]
#: Weights of no meaning that differ everywhere; the rows sum to 1.
TABLE = tuple(tuple((1 + (i * j) % 5) / sum(1 + (i * k) % 5 for k in range(i)) for j in range(i)) for i in range(10))


@pytest.mark.parametrize(("build", "call", "blocks", "calls"), PIPELINES)
def test_blocks_run_on_the_schedule_only(build, call, blocks, calls):
    executed = check_contract(build, L2P(3, start=2, weights=TABLE), call)
    assert executed.block_calls == [calls * blocks * computed for computed in SCHEDULE]


def test_every_prediction_is_the_sum_over_all_earlier_features():
    pipe, seen = wan(), []
    pipe.transformer.norm_out.register_forward_pre_hook(lambda _, given: seen.append(given[0].double()))
    execute(pipe, L2P(3, start=2, weights=TABLE), FIRST, VIDEO_CALL)
    for stream in (seen[::2], seen[1::2]):
        for i in (2, 3, 5, 6, 8, 9):
            expected = sum(weight * stream[j] for j, weight in enumerate(TABLE[i]))
            torch.testing.assert_close(stream[i], expected, atol=1e-5, rtol=1e-4)


def test_training_is_adam_on_the_mean_squared_error():
    features = torch.randn(3, 6, 40, dtype=torch.float64).cumsum(1)  # [prompts, steps, elements]
    gram = (features @ features.transpose(1, 2)).mean(0) / 40
    table = nn.Parameter(torch.diag_embed(torch.ones(5, dtype=torch.float64), -1))
    optimiser = torch.optim.Adam([table], lr=0.01)
    for _ in range(200):
        optimiser.zero_grad()
        rest = features - table.tril(-1) @ features
        rest.square().mean((0, 2)).sum().backward()
        optimiser.step()
    for i, row in enumerate(fitted_weights(gram)):
        torch.testing.assert_close(torch.tensor(row, dtype=torch.float64), table.detach()[i, :i])


def test_it_is_fitted_on_the_features_of_the_bench():
    pipe, seen = wan(), []
    prompts = Prompts(tuple(PROMPTS[:2]), 0)
    handle = pipe.transformer.norm_out.register_forward_pre_hook(lambda _, given: seen.append(given[0].double()))
    for one in prompts.batches(1):
        execute(pipe, None, one, VIDEO_CALL)
    handle.remove()
    features = torch.stack(seen).flatten(1).unflatten(0, (2, 10, 2)).transpose(1, 2).flatten(0, 1)
    gram = (features @ features.transpose(1, 2)).mean(0) / features.shape[-1]
    found = L2P().calibrated(Bench(pipe, VIDEO_CALL, prompts))
    assert [len(row) for row in found.weights] == list(range(10))
    for row, expected in zip(found.weights, fitted_weights(gram), strict=True):
        torch.testing.assert_close(torch.tensor(row), torch.tensor(expected), atol=1e-5, rtol=1e-5)
    assert found.calibrated(None) is found


def test_published_settings():
    found = L2P.published()["FluxTransformer2DModel"]
    assert [method.schedule(50).K for method in found.values()] == [12, 9, 7]
    assert L2P(5).variants() == (L2P(5), L2P(5, start=1))
    assert L2P(5, start=1).schedule(12).computed_steps == (0, 5, 10)


def test_refusals():
    pipe = flux()
    assert L2P(start=10).refusal(pipe, CALL) == "all 10 steps are computed at the start; set start below 10"
    with pytest.raises(CalibrationError, match=r"L2P has no weights for these 10 steps; fit them with calibrated"):
        L2P().applied(pipe, CALL)
    with pytest.raises(CalibrationError, match="no weights for these 9 steps"):
        L2P(weights=TABLE).applied(pipe, {**CALL, "num_inference_steps": 9})
    pipe.transformer = nn.Linear(2, 2)
    assert L2P().refusal(pipe, CALL) == "the blocks of Linear are not known"
