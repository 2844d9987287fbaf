"""A denoiser whose outputs live in one buffer per call, as a CUDA graph's do: what is kept of them is copied."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor

import pipelines
from dummy_pipeline import PROMPTS, DummyPipeline, linear_pipeline, mixture_pipeline, untimed
from ertacache.baselines.baseline import Bench
from ertacache.baselines.catalogue import METHODS
from ertacache.baselines.gcache import GCache
from ertacache.baselines.profile_method import ProfileMethod
from ertacache.baselines.searched_reuse import SearchedReuse
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.pipeline_run import Final, run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.evaluation.execute import execute

T = 9
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": 5.0}


@contextmanager
def static_outputs(module: Any, calls: int) -> Generator[None]:
    """Every output in one buffer for each of the `calls` of a step; the one before is spoilt by the next."""
    forward, buffers, count = type(module).forward, dict[Any, Tensor](), [0]

    def static(self: Any, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        output = forward(self, *args, **kwargs)
        value = output[0] if isinstance(output, tuple) else output.sample
        place = (count[0] % calls, value.shape)
        count[0] += 1
        buffer = buffers.setdefault(place, torch.empty_like(value))
        buffer.copy_(value)
        return (buffer,)

    module.forward = MethodType(static, module)
    try:
        yield
    finally:
        del module.forward


#: Every way in which a calibration keeps what a denoiser returned.
CHOICES: dict[str, dict[str, Any]] = {
    "fitted, step": {"basis": "fitted", "aim": "step"},
    "fitted, trajectory": {"basis": "fitted", "aim": "trajectory"},
    "fitted, every history": {"basis": "fitted", "history": "auto", "aim": "auto"},
    "fitted, output": {"basis": "fitted", "site": "output", "aim": "step"},
    "fitted, rectified, on a grid": {"basis": "fitted", "aim": "step", "rectifier": "channel", "timesteps": 0.3},
    "residual, rectified": {"basis": "residual", "rectifier": "channel"},
    "residual, output, element": {"basis": "residual", "site": "output", "rectifier": "element"},
    "residual, every grid": {"basis": "residual", "timesteps": "auto"},
    "reuse, output": {"basis": "reuse", "site": "output", "rectifier": "scalar"},
    "the paper": {"method": "ertacache"},
    "guidance directions": {"effort": "fast"},
    "by threshold": {"compute_steps": None, "threshold": 0.2},
}


def linear() -> DummyPipeline:
    return linear_pipeline(0.3 * torch.eye(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("batch_size", [None, 3], ids=["one batch", "lockstep"])
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize(("build", "calls"), [(mixture_pipeline, 2), (linear, 1)], ids=["two calls", "one call"])
@pytest.mark.filterwarnings("ignore:this plan", "ignore:.*judged prompts cannot tell")
def test_a_calibration_finds_the_same(build: Callable[[], Any], calls: int, name: str, batch_size: int | None):
    options = {"compute_steps": 4, "show_progress": False, "batch_size": batch_size, **CHOICES[name], **CALL}
    expected, pipe = calibrate(build(), PROMPTS, **options), build()
    with static_outputs(pipe.transformer, calls):
        assert untimed(calibrate(pipe, PROMPTS, **options)) == untimed(expected)


@pytest.mark.parametrize("options", [{"rectifier": "channel"}, {"timesteps": "auto"}, {"method": "ertacache"}], ids=str)
@pytest.mark.filterwarnings("ignore:this plan", "ignore:.*judged prompts cannot tell")
def test_a_calibration_at_site_hidden_finds_the_same(options: dict[str, Any]):
    given = {
        "basis": "residual", "site": "hidden", "compute_steps": 4, "show_progress": False, "holdout": 0.5,
        **options, **pipelines.CALL, "num_inference_steps": 8,
    }  # fmt: skip
    pipe = pipelines.flux()
    expected = calibrate(pipe, pipelines.PROMPTS[:2], **given)
    with static_outputs(pipe.transformer, 1):
        assert untimed(calibrate(pipe, pipelines.PROMPTS[:2], **given)) == untimed(expected)


def test_what_the_solver_received_is_copied():
    finals = [Final(keep_outputs=True), Final(keep_outputs=True)]
    pipe, prompts = linear(), Prompts(tuple(PROMPTS[:2]), 0)
    run_pipeline(pipe, prompts, finals[0], CALL)
    with static_outputs(pipe.transformer, 1):
        run_pipeline(pipe, prompts, finals[1], CALL)
    assert torch.equal(torch.stack(finals[0].outputs), torch.stack(finals[1].outputs))
    assert torch.equal(finals[0].latents, finals[1].latents)


FIRST = Prompts(tuple(pipelines.PROMPTS[:1]), 0)


#: Those that keep more with two calls per step than with one.
_TWO_CALLS = ("fastercache", "t-gate", "magcache", "teacache", "fitted")


@pytest.mark.parametrize(
    ("method", "model"),
    [(method, model) for method in METHODS for model in ("flux", "wan") if model == "flux" or method.key in _TWO_CALLS],
    ids=lambda value: value if isinstance(value, str) else value.key,
)
def test_a_compared_method_gives_the_same(method: Any, model: str):
    build, calls = (pipelines.flux, 1) if model == "flux" else (pipelines.wan, 2)
    call = {**(pipelines.CALL if model == "flux" else pipelines.VIDEO_CALL), "num_inference_steps": 10}
    pipe = build()
    if reason := method.refusal(pipe, call):
        pytest.skip(reason)

    if isinstance(method, SearchedReuse):  # a short search is one too
        method = replace(method, **({"tries": 4} if isinstance(method, GCache) else {"iterations": 4, "rounds": 0}))

    def made() -> tuple[Any, Any]:
        bench = Bench(pipe, call, Prompts(tuple(pipelines.PROMPTS[:3]), 0))
        ready = method.planned(bench, 0.5) or method.calibrated(bench)
        return ready, execute(pipe, ready, FIRST, ready.call(call), decode=False)[0]

    expected, latents = made()
    with static_outputs(pipe.transformer, calls):
        ready, found = made()
    if isinstance(method, ProfileMethod):
        assert untimed(ready.profile) == untimed(expected.profile)
    else:
        assert ready == expected
    assert torch.equal(found, latents)
