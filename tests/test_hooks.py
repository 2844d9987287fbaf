"""What is put on a pipeline, what is refused, and that all of it comes off again."""

import copy
import functools
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, FluxImg2ImgPipeline, FluxTransformer2DModel
from diffusers.hooks import apply_first_block_cache

import ertacache.runtime.apply as ertacache
from cached import MASK, MU, SITES, T, calls_per_step, latents, profile
from ertacache.errors import CacheConflict, InvalidArgument, UnsupportedPipeline
from ertacache.profile.profile import Site
from ertacache.runtime.hooks import Attachment, attached, attachment_of
from ertacache.runtime.run import Controller

GRID = [1 - i / T for i in range(T)]
COMPUTED = [int(mark == "#") for mark in MASK]


def state(pipe: Any) -> list[dict[str, Any]]:
    """Everything that hangs on the instances that a profile may touch."""
    blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    return [dict(vars(owner)) for owner in (pipe.transformer, *blocks)] + [
        {name: value for name, value in vars(pipe.scheduler).items() if callable(value)},
        {name: None for name in vars(pipe.scheduler)},
    ]


class Stop(Exception):
    """Raised in the middle of a run."""


def stop_in_callback(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == 3:
        raise Stop
    return tensors


def stop_in_denoiser(pipe: Any, at: int) -> Any:
    """The handle of a hook that raises in the `at`-th real call."""
    calls = [0]

    def raise_late(*_: Any) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise Stop

    return pipe.transformer.single_transformer_blocks[0].attn.register_forward_hook(raise_late)


@pytest.mark.parametrize("site", SITES)
def test_the_pipeline_is_as_it_was_after_disable(flux_cfg: Any, site: Site) -> None:
    plain, before = latents(flux_cfg), state(flux_cfg)
    stats = ertacache.enable(flux_cfg, profile(flux_cfg, site))
    assert not torch.equal(latents(flux_cfg), plain)
    ertacache.disable(flux_cfg)
    assert state(flux_cfg) == before
    assert torch.equal(latents(flux_cfg), plain)
    assert stats.runs == 1  # a run without the profile is not counted


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("inside", ["callback", "denoiser"])
def test_an_exception_in_the_loop_leaves_nothing_behind(flux_cfg: Any, site: Site, inside: str) -> None:
    plain, before = latents(flux_cfg), state(flux_cfg)
    wanted = profile(flux_cfg, site)
    with ertacache.apply(flux_cfg, wanted):
        fresh = latents(flux_cfg)
    with pytest.raises(Stop), ertacache.apply(flux_cfg, wanted) as stats:
        for _ in range(2):  # the second time, straight after a run that died
            handle = stop_in_denoiser(flux_cfg, at=4) if inside == "denoiser" else None
            with pytest.raises(Stop):
                latents(flux_cfg, callback_on_step_end=stop_in_callback)
            if handle is not None:
                handle.remove()
        assert torch.equal(latents(flux_cfg), fresh)  # a following run starts clean
        assert (stats.runs, stats.computed) == (3, {"cond": 5, "uncond": 5})
        latents(flux_cfg, callback_on_step_end=stop_in_callback)
    assert state(flux_cfg) == before
    assert torch.equal(latents(flux_cfg), plain)


def test_an_exception_in_set_timesteps_ends_the_run_before(flux: Any) -> None:
    with ertacache.apply(flux, profile(flux, "output")):
        latents(flux, callback_on_step_end=lambda pipe, step, t, tensors: setattr(pipe, "_interrupt", True) or tensors)
        with pytest.raises(ValueError, match="mu"):
            flux.scheduler.set_timesteps(T)
        assert attachment_of(flux).runs.all() == []


def test_a_block_that_raised_in_its_with_block_may_disable_itself(flux: Any) -> None:
    with ertacache.apply(flux, profile(flux, "output")):
        ertacache.disable(flux)
        assert calls_per_step(flux) == [1] * T


def test_signatures_stay(flux: Any) -> None:
    before = [inspect.signature(method) for method in (flux.scheduler.set_timesteps, flux.scheduler.step)]
    with ertacache.apply(flux, profile(flux, "guided")):
        after = [inspect.signature(method) for method in (flux.scheduler.set_timesteps, flux.scheduler.step)]
        assert after == before
        assert inspect.signature(flux.transformer.forward) == inspect.signature(FluxTransformer2DModel(
            num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=1, in_channels=4,
            joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
        ).forward)  # fmt: skip


def test_a_copied_scheduler_runs_itself(flux: Any) -> None:
    with ertacache.apply(flux, profile(flux, "output")):
        latents(flux)
        other = copy.deepcopy(flux.scheduler)
        kept = flux.scheduler.sigmas.clone(), flux.scheduler.step_index
        other.set_timesteps(sigmas=GRID, mu=MU)
        assert attachment_of(flux).runs.of(other) is not None  # as in pipelines that copy their scheduler
        assert other.step_index is None and flux.scheduler.step_index == T
        flux.scheduler.set_timesteps(sigmas=GRID, mu=MU)
        other.step(torch.ones(1, 2), other.timesteps[0], torch.ones(1, 2))  # beside the run, not part of it
        assert (other.step_index, flux.scheduler.step_index) == (1, None)
    assert torch.equal(flux.scheduler.sigmas, kept[0])
    other.set_timesteps(4, mu=1.15)  # no longer under the profile, which is for ten steps
    assert len(other.timesteps) == 4 and len(flux.scheduler.timesteps) == T


def test_a_copied_pipeline_is_plain(flux: Any) -> None:
    plain = latents(flux)
    with ertacache.apply(flux, profile(flux, "hidden")) as stats:
        denoiser = copy.deepcopy(flux.transformer)
    flux.transformer = denoiser
    assert calls_per_step(flux) == [1] * T and torch.equal(latents(flux), plain)
    assert stats.runs == 0


def test_nested_and_doubled_application_is_refused(flux: Any) -> None:
    wanted = profile(flux, "output")
    with ertacache.apply(flux, wanted):
        with pytest.raises(CacheConflict, match=r"already applied.*disable"):
            ertacache.enable(flux, wanted)
        with pytest.raises(CacheConflict, match="already applied"), ertacache.apply(flux, profile(flux, "hidden")):
            pass
        assert calls_per_step(flux) == COMPUTED  # the first one still works
    assert attachment_of(flux) is None


def test_a_shared_denoiser_is_refused(flux: Any) -> None:
    other = FluxImg2ImgPipeline.from_pipe(flux)
    other.scheduler = copy.deepcopy(flux.scheduler)
    compiled = FluxImg2ImgPipeline.from_pipe(flux)
    compiled.scheduler = copy.deepcopy(flux.scheduler)
    compiled.transformer = torch.compile(flux.transformer, backend="eager")
    wanted = profile(flux, "output")
    with ertacache.apply(flux, wanted):
        for pipe in (other, compiled):
            with pytest.raises(CacheConflict, match="FluxTransformer2DModel"):
                ertacache.enable(pipe, wanted)
            assert [name for name, value in vars(pipe.scheduler).items() if callable(value)] == []
    with ertacache.apply(other, wanted):
        pass


def test_a_pipeline_that_shares_everything_is_served_too(flux_cfg: Any) -> None:
    other = FluxImg2ImgPipeline.from_pipe(flux_cfg)  # it names no calls, where the first one does
    with ertacache.apply(flux_cfg, profile(flux_cfg, "output")) as stats:
        latents(flux_cfg)
        assert calls_per_step(other, image=torch.zeros(1, 3, 64, 64), strength=1.0) == [2 * n for n in COMPUTED]
    assert (stats.computed, stats.predicted) == ({"cond": 5, "uncond": 5}, {"cond": 5, "uncond": 5})


def test_a_shared_scheduler_is_refused(flux: Any, flux_cfg: Any) -> None:
    flux_cfg.scheduler = flux.scheduler
    with (
        ertacache.apply(flux, profile(flux, "output")),
        pytest.raises(CacheConflict, match="FlowMatchEulerDiscreteScheduler"),
    ):
        ertacache.enable(flux_cfg, profile(flux_cfg, "output"))


def test_a_cache_of_diffusers_is_refused(flux: Any, flux_cfg: Any) -> None:
    config = FirstBlockCacheConfig(threshold=0.1)
    flux.transformer.enable_cache(config)
    with pytest.raises(CacheConflict, match=r"another cache.*FluxTransformer2DModel.*disable_cache"):
        ertacache.enable(flux, profile(flux, "output"))
    flux.transformer.disable_cache()
    with ertacache.apply(flux, profile(flux, "output")):
        assert calls_per_step(flux) == COMPUTED
    apply_first_block_cache(flux_cfg.transformer, config)  # the same cache, without its mark on the denoiser
    with pytest.raises(CacheConflict, match="another cache"):
        ertacache.enable(flux_cfg, profile(flux_cfg, "output"))


def test_disable_without_a_profile_warns_and_does_nothing(flux: Any) -> None:
    before = state(flux)
    with pytest.warns(UserWarning, match="no profile is applied to this FluxPipeline; nothing to disable"):
        ertacache.disable(flux)
    assert state(flux) == before


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_loaded(flux: Any, tmp_path: Path, kind: Any) -> None:
    wanted = profile(flux, "output")
    path = kind(wanted.save(tmp_path / "profile.safetensors"))
    with ertacache.apply(flux, wanted):
        expected = latents(flux)
    with ertacache.apply(flux, path) as stats:
        assert torch.equal(latents(flux), expected)
    assert stats.predicted == {"cond": 5}
    ertacache.enable(flux, path)
    assert torch.equal(latents(flux), expected)
    ertacache.disable(flux)


def test_what_is_no_profile_is_refused(flux: Any, tmp_path: Path) -> None:
    for door in (ertacache.enable, lambda *given: ertacache.apply(*given).__enter__()):
        with pytest.raises(InvalidArgument, match="profile is a int; pass a Profile, or the path or Hub id of one"):
            door(flux, 5)
        with pytest.raises(InvalidArgument, match=r"there is no profile at .*missing\.safetensors"):
            door(flux, tmp_path / "missing.safetensors")
    assert attachment_of(flux) is None


def test_an_unknown_keyword_is_named(flux: Any) -> None:
    for door in (ertacache.enable, ertacache.apply):
        with pytest.raises(TypeError, match="unexpected keyword argument 'offload'"):
            door(flux, profile(flux, "output"), offload="cpu")


def test_a_run_of_a_scheduler_that_came_later_is_plain_and_counted(flux: Any) -> None:
    plain, before = latents(flux), state(flux)
    with ertacache.apply(flux, profile(flux, "output")) as stats:
        latents(flux)
        flux.scheduler = type(flux.scheduler).from_config(flux.scheduler.config)
        assert torch.equal(latents(flux), plain)
        assert (stats.runs, stats.outside) == (1, T)
        assert attachment_of(flux) is not None
    assert state(flux)[0] == before[0]
    assert calls_per_step(flux) == [1] * T


def test_what_was_wrapped_again_is_said_and_harmless(flux: Any) -> None:
    plain = latents(flux)
    ertacache.enable(flux, profile(flux, "output"))
    ours = flux.scheduler.step

    @functools.wraps(ours)
    def theirs(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    flux.scheduler.step = theirs
    with pytest.raises(CacheConflict, match=r"FlowMatchEulerDiscreteScheduler\.step was wrapped again"):
        ertacache.disable(flux)
    assert torch.equal(latents(flux), plain)
    with ertacache.apply(flux, profile(flux, "output")):  # around theirs, which stays
        assert calls_per_step(flux) == COMPUTED


def test_hidden_is_refused_where_the_blocks_are_unknown(flux: Any) -> None:
    class Unheard(FluxTransformer2DModel):
        pass

    flux.transformer.__class__ = Unheard
    before = state(flux)
    with pytest.raises(UnsupportedPipeline, match=r"'hidden' is not known for Unheard.*'output' or 'guided'"):
        Attachment(flux, Controller(), hidden=True)
    with pytest.raises(UnsupportedPipeline, match="Unheard"), attached(flux, Controller(), hidden=True):
        pass
    assert state(flux) == before
    with attached(flux, Controller(), hidden=False):
        latents(flux)


def test_a_foreign_block_is_refused_and_the_others_are_left_as_they_were(flux: Any) -> None:
    flux.transformer.single_transformer_blocks[-1] = torch.nn.Identity()
    before = state(flux)
    with pytest.raises(UnsupportedPipeline, match=r"'hidden' is not known for a block of class Identity"):
        Attachment(flux, Controller(), hidden=True)
    assert state(flux) == before


@pytest.mark.parametrize(("parts", "found"), [((), "no"), (("transformer", "unet"), "'transformer', 'unet'")])
def test_a_pipeline_needs_exactly_one_denoiser(flux: Any, parts: tuple[str, ...], found: str) -> None:
    class Odd:
        scheduler = flux.scheduler

    odd = Odd()
    for name in parts:
        setattr(odd, name, flux.transformer)
    with pytest.raises(UnsupportedPipeline, match=rf"Odd has \[?{found}.* exactly one"):
        Attachment(odd, Controller(), hidden=False)


def test_a_denoiser_that_returns_no_tensor_is_refused(flux: Any) -> None:
    flux.transformer.forward = lambda **_: ["not", "a", "tensor"]
    with (
        ertacache.apply(flux, profile(flux, "output")),
        pytest.raises(UnsupportedPipeline, match=r"FluxTransformer2DModel returned list"),
    ):
        latents(flux)


@pytest.mark.parametrize("site", SITES)
def test_nothing_is_held_after_the_run(flux: Any, site: Site) -> None:
    held: list[int] = []
    with ertacache.apply(flux, profile(flux, site)):
        runs: Any = attachment_of(flux).runs

        def look(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            held.append(sum(run.controller.history.nbytes for run in runs.all()))
            return tensors

        latents(flux, callback_on_step_end=look)
    assert held[-2] > 0 and held[-1] == 0
