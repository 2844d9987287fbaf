"""TeaCache's polynomial fitted on the tiny pipelines."""

import itertools
import json

import numpy as np
import pytest
import torch

from ertacache.baselines.baseline import Bench
from ertacache.baselines.teacache import COEFFICIENTS, TeaCache
from ertacache.baselines.teacache_calibration import Calibration, calibrate_teacache, fit_polynomial, polynomial
from ertacache.calibration.prompts import Prompts
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.evaluation.execute import execute
from pipelines import CALL, CFG_CALL, PROMPTS, VIDEO_CALL, flux, wan


def _bench(pipe, call):
    return Bench(pipe, call, Prompts(tuple(PROMPTS), 0))


@pytest.mark.parametrize("weights", COEFFICIENTS)
def test_an_exact_quartic_is_recovered(weights):
    x = torch.linspace(0.02, 0.2, 29, dtype=torch.float64)
    found = fit_polynomial(x, polynomial(COEFFICIENTS[weights], x))
    assert found == pytest.approx(COEFFICIENTS[weights], rel=1e-6)


def test_a_polynomial_of_lower_degree_still_has_five_coefficients():
    x = torch.arange(8.0)
    found = fit_polynomial(x, torch.zeros(8))
    assert found == (0.0, 0.0, 0.0, 0.0, 0.0)
    assert fit_polynomial(x, 3 * x + 1) == pytest.approx((0, 0, 0, 3, 1), abs=1e-9)


def test_too_few_different_distances_are_refused():
    with pytest.raises(CalibrationError, match="needs 5 different signal distances, and there are 4"):
        fit_polynomial(torch.tensor([0.1, 0.2, 0.3, 0.4] * 9), torch.rand(36))
    with pytest.raises(CalibrationError, match="NaN or infinite distance; run the pipeline in a wider dtype"):
        fit_polynomial(torch.arange(9.0), torch.full((9,), torch.nan))
    with pytest.raises(CalibrationError, match="num_inference_steps is 5; TeaCache's fit needs at least 6"):
        calibrate_teacache(_bench(flux(), {**CALL, "num_inference_steps": 5}))


def test_the_polynomial_starts_with_the_highest_degree():
    assert polynomial((1.0, 2.0, 3.0, 4.0, 5.0), 10.0) == 12345.0
    assert polynomial((0.0, 0.0, 0.0, 2.0, 1.0), torch.tensor([0.0, 1.0])).tolist() == [1.0, 3.0]


def _relative(values):
    return [float((b - a).abs().sum() / a.abs().sum()) for a, b in itertools.pairwise(values)]


def test_distances_are_those_of_the_uncached_runs():
    pipe = flux()
    calibration = calibrate_teacache(_bench(pipe, CALL), prompts=2)
    signals, outputs = [], []
    pipe.transformer.transformer_blocks[0].norm1.register_forward_hook(lambda *call: signals.append(call[-1][0]))
    pipe.transformer.register_forward_hook(lambda *call: outputs.append(call[-1][0]))
    for n in range(2):
        execute(pipe, None, Prompts((PROMPTS[n],), n), CALL)
    assert list(calibration.distances) == list(calibration.truth) == ["cond"]
    for found, seen in ((calibration.distances, signals), (calibration.truth, outputs)):
        expected = torch.tensor([_relative(seen[:10]), _relative(seen[10:])], dtype=torch.float64)
        torch.testing.assert_close(found["cond"], expected, rtol=1e-5, atol=0)
    x, y = calibration.distances["cond"].flatten().numpy(), calibration.truth["cond"].flatten().numpy()
    np.testing.assert_allclose(calibration.predicted["cond"].flatten(), np.polyval(np.polyfit(x, y, 4), x), rtol=1e-5)


def test_two_branches_share_one_polynomial():
    calibration = calibrate_teacache(_bench(flux(False), CFG_CALL), prompts=3)
    assert {context: tuple(d.shape) for context, d in calibration.truth.items()} == {"cond": (3, 9), "uncond": (3, 9)}
    x, y = (
        torch.cat([side["cond"].flatten(), side["uncond"].flatten()])
        for side in (calibration.distances, calibration.truth)
    )
    assert calibration.coefficients == fit_polynomial(x, y)


def test_ret_steps_has_a_signal_of_its_own():
    bench = _bench(wan(), VIDEO_CALL)
    plain, other = (calibrate_teacache(bench, prompts=1, ret_steps=ret_steps) for ret_steps in (False, True))
    assert torch.equal(plain.truth["uncond"], other.truth["uncond"])
    assert not torch.isclose(plain.distances["cond"], other.distances["cond"], rtol=0.01).all()
    assert TeaCache(ret_steps=True, calibration_prompts=1).calibrated(bench).coefficients == other.coefficients


def test_calibrated_fits_unless_coefficients_are_given():
    bench = _bench(flux(), CALL)
    method = TeaCache(0.3, calibration_prompts=2).calibrated(bench)
    assert method == TeaCache(0.3, calibrate_teacache(bench, prompts=2).coefficients, calibration_prompts=2)
    assert method.calibrated(bench) is method


def test_a_calibration_survives_json():
    calibration = calibrate_teacache(_bench(flux(), CALL), prompts=1)
    read = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert read.coefficients == calibration.coefficients
    assert torch.equal(read.distances["cond"], calibration.distances["cond"])
    assert torch.equal(read.truth["cond"], calibration.truth["cond"])


@pytest.mark.parametrize("broken", [{}, {"distances": 1, "truth": {}}, {"distances": {"a": "b"}, "truth": {}}])
def test_broken_json_is_refused(broken):
    with pytest.raises(InvalidArgument, match=r"this is no TeaCache calibration .*; calibrate again"):
        Calibration.from_json(broken)
