"""VDE: the velocity along and across the latent."""

from types import MethodType, SimpleNamespace

import pytest
import torch

from ertacache.baselines.vde import VDE, _Decomposed
from ertacache.evaluation.execute import execute
from method_contract import FIRST, check_contract
from pipelines import CALL, CFG_CALL, VIDEO_CALL, cogvideox, flux, wan

ALL = [(flux, CALL, 1), (lambda: flux(False), CFG_CALL, 2), (wan, VIDEO_CALL, 2), (cogvideox, VIDEO_CALL, 1)]
IDS = ["flux", "flux-cfg", "wan", "cogvideox"]
#: stable 2, every third step from there, and the last
SCHEDULE = [1, 1, 1, 0, 0, 1, 0, 0, 1, 1]


@pytest.mark.parametrize(("build", "call", "calls"), ALL, ids=IDS)
def test_calls_follow_the_schedule(build, call, calls):
    executed = check_contract(build, VDE(3, stable=2), call)
    assert executed.denoiser_calls == [calls * computed for computed in SCHEDULE]


def test_every_prediction_is_the_formula_on_the_latent_of_its_step():
    """One call per step, Euler: what the solver received is what the denoiser returned, and gives the latents."""
    pipe, noise = flux(), []
    step = pipe.scheduler.step

    def noted(_, model_output, timestep, sample, **options):
        noise.append(sample.double())
        return step(model_output, timestep, sample, **options)

    pipe.scheduler.step = MethodType(noted, pipe.scheduler)
    executed = execute(pipe, VDE(3, stable=2), FIRST, CALL, keep_outputs=True)[1]
    outputs, times = [output.double() for output in executed.outputs], executed.sigmas.double()
    parts = {}
    for i, computed in enumerate(SCHEDULE):
        x, v = noise[i].flatten(), outputs[i].flatten()
        if computed:
            along = (v @ x) / (x @ x)
            rest = v - along * x
            parts[i] = along, rest.norm() / x.norm(), rest / rest.norm()
            continue
        older, newest = sorted(parts)[-2:]
        share = (times[i] - times[older]) / (times[newest] - times[older])
        along, across = (parts[older][n] + share * (parts[newest][n] - parts[older][n]) for n in (0, 1))
        expected = along * x + across * x.norm() * parts[newest][2]
        torch.testing.assert_close(v, expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(v, outputs[newest].flatten(), atol=1e-3)


def test_a_velocity_along_the_latent_is_predicted_exactly():
    """v = α(t) x with α a line in t: nothing across, nothing to divide by."""
    forecast = _Decomposed(SimpleNamespace(timesteps=torch.tensor([900.0, 700.0, 400.0, 100.0])))
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    for step, time in ((0, 900), (1, 700)):
        forecast.push(step, (0.001 * time - 2) * x, x)
    torch.testing.assert_close(forecast.predict(3, 3 * x), (0.1 - 2) * 3 * x)


def test_one_anchor_is_repeated():
    executed = execute(flux(), VDE(4, stable=0), FIRST, CALL)[1]
    assert executed.denoiser_calls == [1, 0, 0, 0, 1, 0, 0, 0, 1, 1]


def test_published_settings_compute_as_many_steps_as_the_paper():
    counts = {
        name: [method.schedule(50).K for method in settings.values()] for name, settings in VDE.published().items()
    }
    assert counts == {
        "FluxTransformer2DModel": [22, 18, 16],
        "QwenImageTransformer2DModel": [24, 18],
        "WanTransformer3DModel": [24, 20],
    }


def test_variants_have_shorter_starts():
    assert VDE(4).variants() == (VDE(4), VDE(4, stable=3), VDE(4, stable=1))
    assert VDE(4, stable=1).variants() == (VDE(4, stable=1),)


def test_refusal():
    call = {**CALL, "num_inference_steps": 8}
    assert VDE().refusal(flux(), call) == "all 8 steps are computed at the start; set stable below 6"
    assert VDE(stable=5).refusal(flux(), call) is None
