"""The time grid: what the scheduler runs on is what the profile says."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline

import ertacache.runtime.apply as ertacache
from cached import SITES, T, base_sigmas, explicit_loop, latents, profile
from ertacache.core.timesteps import adjust
from ertacache.errors import InvalidArgument, UnsupportedPipeline
from ertacache.pipelines.solvers import check_scheduler, read_grid, write_grid
from ertacache.profile.profile import Profile, Site
from pipelines import CALL, PROMPTS, generate


def adjusted(pipe: Any, site: Site) -> Profile:
    """With the intervals of the predicted steps at 60% and the rest stretched."""
    plain = profile(pipe, site)
    phis = dict.fromkeys(plain.schedule.predicted_steps, 0.6)
    sigmas = adjust(plain.base_sigmas.double(), plain.schedule, phis, 1.0).float()
    sigmas[0], sigmas[-1] = plain.base_sigmas[0], plain.base_sigmas[-1]
    assert (sigmas - plain.base_sigmas).abs().max() > 0.03
    return profile(pipe, site, sigmas=sigmas)


@pytest.mark.parametrize("site", SITES)
def test_the_profiles_grid_is_what_runs(flux: Any, site: Site) -> None:
    wanted = adjusted(flux, site)
    seen: list[float] = []
    asked: list[float] = []
    flux.transformer.time_text_embed.register_forward_pre_hook(lambda m, a: asked.append(float(a[0][0])))

    def note(pipe: Any, step: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(float(t))
        return tensors

    with ertacache.apply(flux, wanted):
        latents(flux, callback_on_step_end=note)
        assert torch.equal(flux.scheduler.sigmas, wanted.sigmas)
        assert torch.equal(flux.scheduler.timesteps, wanted.sigmas[:-1] * 1000)
    assert seen == (wanted.sigmas[:-1] * 1000).tolist()
    steps = wanted.schedule.computed_steps if site != "hidden" else range(T)
    assert asked == pytest.approx([seen[i] for i in steps], rel=1e-6)
    latents(flux)
    assert torch.equal(flux.scheduler.sigmas, base_sigmas(flux))


@pytest.mark.parametrize("site", ["output", "guided"])
def test_the_solver_integrates_on_the_profiles_grid(flux_cfg: Any, site: Site) -> None:
    wanted = adjusted(flux_cfg, site)
    with ertacache.apply(flux_cfg, wanted):
        found = latents(flux_cfg)
    torch.testing.assert_close(found, explicit_loop(flux_cfg, wanted), rtol=1e-5, atol=1e-5)


def test_a_late_start_runs_on_the_end_of_the_profiles_grid(flux: Any) -> None:
    pipe, wanted, seen = FluxImg2ImgPipeline.from_pipe(flux), adjusted(flux, "output"), list[float]()
    pipe.set_progress_bar_config(disable=True)

    def note(_: Any, step: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(float(t))
        return tensors

    more = {"image": torch.zeros(1, 3, 64, 64), "strength": 0.6, "callback_on_step_end": note}
    with ertacache.apply(pipe, wanted):
        generate(pipe, PROMPTS[:1], CALL, **more)
    assert seen == (wanted.sigmas[4:-1] * 1000).tolist()


def test_an_unchanged_grid_is_left_alone(flux: Any) -> None:
    """A call that is a little off the calibration's grid, as another image size is, keeps its own."""
    sigmas = [1.0 - 0.1 * i for i in range(T)]
    sigmas[5] += 0.01
    with ertacache.apply(flux, profile(flux, "output")):
        latents(flux, sigmas=sigmas)
    assert 0.001 < (flux.scheduler.sigmas - base_sigmas(flux)).abs().max() < 0.02


def test_write_grid_reaches_views_of_the_timesteps() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    view = scheduler.timesteps[1:]
    grid = torch.tensor([1.0, 0.75, 0.5, 0.125, 0.0])
    write_grid(scheduler, grid)
    assert view.tolist() == [750.0, 500.0, 125.0]
    assert torch.equal(read_grid(scheduler), grid)


def test_read_grid_is_a_copy() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    grid = read_grid(scheduler)
    write_grid(scheduler, torch.zeros(5))
    assert grid[0] == 1.0 and grid.dtype == torch.float32


def test_a_grid_of_another_length_is_refused() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(InvalidArgument, match=r"grid of 5 steps .* set to 4; .*num_inference_steps"):
        write_grid(scheduler, torch.zeros(6))


def test_a_scheduler_without_a_grid_is_refused() -> None:
    with pytest.raises(UnsupportedPipeline, match=r"NoStep keeps no sigmas"):
        read_grid(NoStep())


def test_a_scheduler_that_knows_alphas_only_is_read_as_an_angle() -> None:
    scheduler = DDIMScheduler(set_alpha_to_one=True)
    scheduler.set_timesteps(4)
    expected = [torch.atan2((1 - a).sqrt(), a.sqrt()) for a in scheduler.alphas_cumprod[scheduler.timesteps]]
    torch.testing.assert_close(read_grid(scheduler), torch.stack([*expected, torch.tensor(0.0)]))


def test_the_grid_of_angles_ends_where_the_stride_leads() -> None:
    """1000 // 7 = 142 where the last timestep is 142 as well: the last step ends at entry 0, not at the end."""
    scheduler = DDIMScheduler(set_alpha_to_one=True, timestep_spacing="trailing")
    scheduler.set_timesteps(7)
    assert read_grid(scheduler)[-1].item() == pytest.approx(math.acos(math.sqrt(scheduler.alphas_cumprod[0])), rel=1e-4)


class NoStep:
    def set_timesteps(self) -> None: ...


class TwoCalls(FlowMatchEulerDiscreteScheduler):
    order = 2


class OtherStep(FlowMatchEulerDiscreteScheduler):
    def step(self, model_output: Any, old_output: Any, timestep: Any, sample: Any) -> Any: ...  # type: ignore[override]


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (NoStep, r"NoStep has no set_timesteps and step; use a diffusers scheduler"),
        (TwoCalls, r"TwoCalls evaluates the denoiser 2 times per step; use a solver of order 1"),
        (OtherStep, r"OtherStep\.step takes model_output, old_output, timestep where .*; use another"),
    ],
)
def test_solvers_that_cannot_be_followed_are_refused(scheduler: Any, message: str) -> None:
    with pytest.raises(UnsupportedPipeline, match=message):
        check_scheduler(scheduler())
    check_scheduler(FlowMatchEulerDiscreteScheduler())
