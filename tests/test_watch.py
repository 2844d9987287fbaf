"""What a run executed, counted below every cache and from outside every method."""

from types import MethodType

import numpy as np
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from torch import nn

import ertacache
from cached import MASK, SITES, profile
from dummies import GaussianMixture
from dummy_pipeline import PROMPTS as DUMMY_PROMPTS
from dummy_pipeline import DummyPipeline, MixtureModule
from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.errors import CalibrationError, UnsupportedPipeline
from ertacache.evaluation.execute import execute
from ertacache.pipelines.solvers import read_grid
from ertacache.runtime.watch import Executed, Watch, attentions_of
from method_contract import FIRST
from pipelines import CALL, CFG_CALL, PROMPTS, VIDEO_CALL, cogvideox, flux, wan

BOTH = Prompts(tuple(PROMPTS[:2]), 0)
#: pipeline, call, and what one step runs: denoiser calls, blocks, attention modules, batch entries in the first block
ALL = [
    (flux, CALL, (1, 6, 6, 1)),
    (lambda: flux(False), CFG_CALL, (2, 12, 12, 2)),
    (wan, VIDEO_CALL, (2, 6, 12, 2)),
    (cogvideox, VIDEO_CALL, (1, 3, 3, 2)),
]
IDS = ["flux", "flux-cfg", "wan", "cogvideox"]


@pytest.mark.parametrize(("build", "call", "step"), ALL, ids=IDS)
def test_every_step_of_an_uncached_run(build, call, step):
    executed = execute(build(), None, FIRST, call, decode=False)[1]
    assert executed.signature == (step,) * 10
    assert executed.flops == executed.outputs == []


@pytest.mark.parametrize(("build", "call", "step"), ALL, ids=IDS)
def test_a_batch_counts_in_its_entries_only(build, call, step):
    executed = execute(build(), None, BOTH, call, decode=False)[1]
    assert executed.signature == ((*step[:3], 2 * step[3]),) * 10


@pytest.mark.parametrize(("build", "call"), [entry[:2] for entry in ALL], ids=IDS)
def test_it_changes_nothing_and_leaves_nothing(build, call):
    pipe = build()
    plain = call_pipeline(pipe, FIRST, call)
    before = _places(pipe)
    images, executed = execute(pipe, None, FIRST, call, flops=True, keep_outputs=True)
    assert torch.equal(images, plain)
    assert len(executed.flops) == len(executed.outputs) == 10
    assert _places(pipe) == before
    assert torch.equal(call_pipeline(pipe, FIRST, call), plain)


def _places(pipe):
    """Replaced methods and forward hooks, wherever a watch could have put some."""
    methods = {name for name in ("step", "set_timesteps") if name in vars(pipe.scheduler)}
    names = ("forward", "_compiled_call_impl")
    modules = pipe.transformer.named_modules()
    return methods | {
        (name, what, len(vars(module)["_forward_pre_hooks"]) + len(vars(module)["_forward_hooks"]))
        for name, module in modules
        for what in (None, *names)
        if what is None or vars(module).get(what) is not None
    }


def test_it_comes_off_after_an_exception():
    pipe = flux()
    before = _places(pipe)
    with pytest.raises(ConnectionError), Watch(pipe, flops=True):
        raise ConnectionError
    assert _places(pipe) == before


@pytest.mark.parametrize("site", SITES)
def test_under_a_profile_the_counts_are_its_schedule(site):
    pipe = flux()
    mask = [mark == "#" for mark in MASK]
    with ertacache.apply(pipe, profile(pipe, site)):
        executed = execute(pipe, None, FIRST, CALL, decode=False)[1]
    assert executed.block_calls == executed.attention_calls == [6 * computed for computed in mask]
    assert executed.denoiser_calls == ([1] * 10 if site == "hidden" else mask)
    assert executed.elements == [int(computed) for computed in mask]


@pytest.mark.parametrize("site", SITES)
def test_a_profile_inside_of_a_watch_is_counted_too(site):
    pipe = flux(False)
    outside = execute(pipe, None, FIRST, CFG_CALL, decode=False)
    with Watch(pipe) as watch, ertacache.apply(pipe, profile(pipe, site)):
        latents = call_pipeline(pipe, FIRST, CFG_CALL, decode=False)
    assert watch.executed.block_calls == [12 * (mark == "#") for mark in MASK]
    assert watch.executed.denoiser_calls == [2 * (mark == "#" or site == "hidden") for mark in MASK]
    assert torch.equal(watch.executed.latents, latents)
    assert not torch.equal(latents, outside[0])
    assert torch.equal(execute(pipe, None, FIRST, CFG_CALL, decode=False)[0], outside[0])


def test_outputs_are_what_the_solver_received_from_a_profile():
    pipe, received = flux(), []
    step = pipe.scheduler.step

    def noted(_, model_output, timestep, sample, **kwargs):
        received.append(model_output.clone())
        return step(model_output, timestep, sample, **kwargs)

    noted_step = pipe.scheduler.step = MethodType(noted, pipe.scheduler)
    with Watch(pipe, keep_outputs=True) as watch, ertacache.apply(pipe, profile(pipe, "guided")):
        call_pipeline(pipe, FIRST, CALL)
    assert len(received) == 10
    assert all(torch.equal(kept, seen) for kept, seen in zip(watch.executed.outputs, received, strict=True))
    assert pipe.scheduler.step is noted_step


@pytest.mark.parametrize(("build", "call"), [entry[:2] for entry in ALL], ids=IDS)
def test_latents_are_those_of_the_pipeline(build, call):
    latents, executed = execute(build(), None, BOTH, call, decode=False)
    assert torch.equal(executed.latents, latents)
    assert executed.latents.dtype == torch.float32


def test_the_grid_is_the_one_that_was_integrated_on():
    pipe = flux()
    base = execute(pipe, None, FIRST, CALL, decode=False)[1].sigmas
    assert torch.equal(base, read_grid(pipe.scheduler))
    moved = base.clone()
    moved[1:-1] *= 0.9
    with Watch(pipe) as watch, ertacache.apply(pipe, profile(pipe, "output", sigmas=moved)):
        call_pipeline(pipe, FIRST, CALL, decode=False)
    assert torch.equal(watch.executed.sigmas, moved)


def test_every_run_starts_afresh_with_its_own_number_of_steps():
    pipe = flux()
    with Watch(pipe) as watch:
        call_pipeline(pipe, FIRST, CALL, decode=False)
        first = watch.executed
        call_pipeline(pipe, BOTH, {**CALL, "num_inference_steps": 4}, decode=False)
    assert first.denoiser_calls == [1] * 10
    assert watch.executed.elements == [2] * 4
    assert len(watch.executed.sigmas) == 5


def test_fused_projections_are_counted_once():
    pipe = flux()
    pipe.transformer.fuse_qkv_projections()
    assert len(list(attentions_of(pipe.transformer))) == 6
    assert execute(pipe, None, FIRST, CALL, decode=False)[1].attention_calls == [6] * 10


def test_a_denoiser_whose_blocks_are_unknown():
    pipe = DummyPipeline(MixtureModule(GaussianMixture()), (4, 4), branches=True)
    executed = execute(pipe, None, Prompts(tuple(DUMMY_PROMPTS[:2]), 0), {"num_inference_steps": 3})[1]
    # The denoiser is its own only part: called twice a step, with no block and no attention.
    assert executed.signature == ((2, 0, 0, 4),) * 3


def test_the_denoiser_may_be_called_outside_of_a_run():
    pipe = DummyPipeline(MixtureModule(GaussianMixture()), (4, 4), branches=True)
    x, t = torch.zeros(1, 4, 4, dtype=torch.float64), torch.tensor([500.0])
    with Watch(pipe, flops=True) as watch:
        pipe.transformer(hidden_states=x, timestep=t)
        executed = execute(pipe, None, Prompts(tuple(DUMMY_PROMPTS[:1]), 0), {"num_inference_steps": 2})[1]
    assert executed.denoiser_calls == watch.executed.denoiser_calls == [2, 2]


def test_without_a_run_there_is_nothing_to_tell():
    with Watch(flux()) as watch, pytest.raises(CalibrationError, match="the pipeline made no run: it never called"):
        _ = watch.executed


def test_what_cannot_be_followed_is_refused():
    pipe = flux()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(UnsupportedPipeline, match=r"FlowMatchHeun.* evaluates the denoiser 2 times per step"):
        Watch(pipe)
    pipe.transformer = None
    with pytest.raises(UnsupportedPipeline, match="no denoiser modules"):
        Watch(pipe)


def test_signature():
    executed = Executed(torch.zeros(3), [1, 0], [6, 0], [6, 0], [2, 0])
    assert executed.signature == ((1, 6, 6, 2), (0, 0, 0, 0))


def test_time_is_that_of_the_loop(monkeypatch):
    ticks = iter(np.arange(0.0, 100.0, 7.0))
    monkeypatch.setattr("ertacache.runtime.watch.now", lambda: float(next(ticks)))
    assert execute(flux(), None, FIRST, CALL)[1].seconds == 7.0


def test_an_attention_module_without_projections_is_none():
    assert list(attentions_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))) == []
