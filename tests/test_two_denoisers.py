"""Pipelines in which a second denoiser takes over within the run, as Wan2.2's: one profile serves both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import ertacache.runtime.apply as ertacache
from ertacache.baselines.block_ranges import RangeCache
from ertacache.baselines.delta_dit import DeltaDiT
from ertacache.calibration.assemble import extrapolated
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.pipeline_run import Final
from ertacache.calibration.prompts import Parts, Prompts
from ertacache.errors import CacheConflict, InvalidArgument, ProfileMismatch, UnsupportedPipeline
from ertacache.pipelines.models import denoiser_of, denoisers_of
from ertacache.profile.profile import Profile, Site
from ertacache.runtime.hooks import attached, attachment_of
from ertacache.runtime.watch import Watch
from pipelines import PROMPTS, VIDEO_CALL, generate, wan
from video_profiles import (
    BOUNDARY,
    TWO_CALL,
    T,
    base_sigmas,
    latents,
    linear,
    profile,
    provenance,
    seen,
    wan22,
)  # fmt: skip

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell")

SITES: tuple[Site, ...] = ("output", "guided", "hidden")
MASK = "##...#.#.#"
CALLS = [[2, 2, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 2, 0, 2, 0, 2]]
W, W2 = TWO_CALL["guidance_scale"], TWO_CALL["guidance_scale_2"]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return wan22()


@pytest.fixture(scope="module")
def plain(pipe: Any) -> torch.Tensor:
    return latents(pipe)


@pytest.mark.parametrize("site", SITES)
def test_computing_every_step_changes_no_bit(pipe: Any, plain: torch.Tensor, site: Site) -> None:
    with ertacache.apply(pipe, profile(pipe, site, "#" * T)) as stats:
        assert torch.equal(latents(pipe), plain)
    assert (stats.computed, stats.predicted) == ({"cond": T, "uncond": T}, {})


@pytest.mark.parametrize("site", SITES)
def test_each_denoiser_runs_on_the_computed_steps_of_its_own(pipe: Any, plain: torch.Tensor, site: Site) -> None:
    with seen(pipe) as found:
        stats = ertacache.enable(pipe, profile(pipe, site, MASK))
        assert attachment_of(pipe) is not None
        assert not torch.equal(latents(pipe), plain)
        ertacache.disable(pipe)
        assert found.calls == CALLS
        assert (stats.computed, stats.predicted) == ({"cond": 5, "uncond": 5}, {"cond": 5, "uncond": 5})
        assert torch.equal(latents(pipe), plain)
    for part in (*denoisers_of(pipe), *pipe.transformer.blocks, *pipe.transformer_2.blocks):
        assert not {"_compiled_call_impl", "forward", "cache_context"} & {
            name for name, value in vars(part).items() if value is not None
        }


def test_a_profile_on_the_second_denoiser_is_in_the_way(pipe: Any) -> None:
    alone = wan()
    alone.transformer = pipe.transformer_2
    with ertacache.apply(alone, profile(alone, "output")):
        with pytest.raises(CacheConflict, match="a profile is already applied to this WanTransformer3DModel"):
            ertacache.enable(pipe, profile(pipe, "output", MASK))
        with pytest.raises(CacheConflict, match="is already applied"):
            ertacache.enable(wan22_of(pipe, alone.transformer), profile(pipe, "output", MASK))


def wan22_of(pipe: Any, second: Any) -> Any:
    other = wan22()
    other.transformer_2 = second
    return other


def test_history_does_not_cross(pipe: Any) -> None:
    """With room for three levels, each step uses what its own denoiser has made so far."""
    mask, weights = "##...###.#", torch.tensor([1.0, 0.5, 0.25])
    a = torch.zeros(T, 1, 1, 3)
    for i, levels in {2: 2, 3: 2, 4: 2, 8: 3}.items():
        a[i, 0, 0, :levels] = weights[:levels]
    wanted = profile(pipe, "guided", mask, predictor=replace(linear(mask, {"guided": {"guided": [1.0] * 3}}), a=a))
    with seen(pipe) as found, ertacache.apply(pipe, wanted):
        latents(pipe)
    g = found.received
    torch.testing.assert_close(g[2], g[1] + 0.5 * g[0])
    torch.testing.assert_close(g[4], g[1] + 0.5 * g[0])
    torch.testing.assert_close(g[8], g[7] + 0.5 * g[6] + 0.25 * g[5])
    c, u = found.outputs[BOUNDARY]
    torch.testing.assert_close(g[BOUNDARY], u + W2 * (c - u))


@pytest.mark.parametrize("site", ["output", "hidden"])
def test_the_step_after_the_change_uses_the_new_output_only(pipe: Any, site: Site) -> None:
    mask = "#....#...."
    scale = {"cond": {"cond": [0.5]}, "uncond": {"uncond": [0.5]}}
    with seen(pipe) as found, ertacache.apply(pipe, profile(pipe, site, mask, predictor=linear(mask, scale))) as stats:
        latents(pipe)
    assert stats.predicted == {"cond": 8, "uncond": 8}
    assert [sum(calls) for calls in found.calls] == [2, 2]
    if site == "output":
        for i in range(T):
            c, u = found.outputs[0 if i < BOUNDARY else BOUNDARY]
            weight, share = (W if i < BOUNDARY else W2), 1.0 if i in (0, BOUNDARY) else 0.5
            torch.testing.assert_close(found.received[i], share * (u + weight * (c - u)))


def test_a_profile_whose_history_crosses_is_refused(pipe: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"step 5 of '##..#.####' is predicted, and another denoiser takes over"):
        profile(pipe, "output", "##..#.####")
    two = linear("##########", {"guided": {"guided": [1.0]}})
    a = torch.zeros(T, 1, 1, 2)
    a[6] = 1.0
    with pytest.raises(InvalidArgument, match=r"step 6 .* needs the last 2 computed steps and its denoiser has made 1"):
        profile(pipe, "guided", "######.###", predictor=replace(two, a=a))


def test_extrapolation_begins_anew(pipe: Any) -> None:
    found = extrapolated(profile(pipe, "output", "##...#.#.#"))
    assert found.predictor.a[6, 0, 0].tolist() == [1.0, 0.0]
    assert found.predictor.a[2, 0, 0, 1] != 0 and found.predictor.a[8, 0, 0, 1] != 0


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (0.9, r"takes over at steps \[5\], and here one takes over at step 3"),
        (0.7, r"takes over at steps \[5\], and here one does not at step 5"),
    ],
)
def test_a_change_at_another_step_is_refused(pipe: Any, ratio: float, message: str) -> None:
    other = wan22(ratio)
    with ertacache.apply(other, profile(pipe, "output", MASK)), pytest.raises(ProfileMismatch, match=message):
        latents(other)


def test_one_denoiser_and_two_are_different_models(pipe: Any) -> None:
    alone = wan()
    with pytest.raises(ProfileMismatch, match="model class: the profile has 'WanTransformer3DModel, WanTransformer3D"):
        ertacache.enable(alone, profile(pipe, "output", MASK))
    with pytest.raises(ProfileMismatch, match="model class"):
        ertacache.enable(pipe, profile(alone, "output", MASK))
    kept = provenance(pipe).model_config["denoisers"]
    other = profile(pipe, "output", MASK, provenance=provenance(pipe, model_config={"denoisers": [kept[0], {}]}))
    with pytest.raises(ProfileMismatch, match=r"model config: denoisers\[1\].attention_head_dim is 128 in the profile"):
        ertacache.enable(pipe, other)


@pytest.mark.parametrize("changes", [{"guidance_scale": 6.0}, {"guidance_scale_2": 5.0}])
def test_each_denoiser_has_its_guidance(pipe: Any, changes: dict[str, float]) -> None:
    at, runs = (W, 6) if "guidance_scale" in changes else (W2, 5)
    with ertacache.apply(pipe, profile(pipe, "guided", MASK)):
        with pytest.raises(
            ProfileMismatch, match=f"guidance weight: the profile was calibrated at {at:.4g}, .* {runs};"
        ):
            latents(pipe, **changes)
    with ertacache.apply(pipe, profile(pipe, "output", MASK)):
        latents(pipe, **changes)  # residual reuse is right at any weight


def test_calibrate_save_load_apply(pipe: Any, tmp_path: Path) -> None:
    found = calibrate(
        pipe, PROMPTS[:3], compute_steps=4, schedule="uniform", basis="fitted", history=2, aim="step",
        holdout=0.3, show_progress=False, **TWO_CALL,
    )  # fmt: skip
    facts = found.provenance
    assert str(found.schedule) == "#..#.##..#"  # evenly spaced, and the step of the change
    assert facts.boundaries == (BOUNDARY,)
    assert facts.guidance_weights == pytest.approx((W, W2), rel=1e-3)
    assert found.predictor.needed_levels(8) == 2 and found.predictor.needed_levels(4) == 2
    loaded = Profile.load(found.save(tmp_path / "p.safetensors"))
    with seen(pipe) as ran, ertacache.apply(pipe, loaded):
        latents(pipe)
    assert ran.calls == [[2, 0, 0, 2, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 2, 2, 0, 0, 2]]


def test_a_threshold_computes_the_change(pipe: Any) -> None:
    for batch_size in (None, 1):
        found = calibrate(
            pipe, PROMPTS[:3], threshold=3.9, holdout=0.3, batch_size=batch_size, show_progress=False, **TWO_CALL
        )
        assert str(found.schedule) == "#....#...#", batch_size


def test_a_given_schedule_that_predicts_the_change_is_refused(pipe: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"predicts steps \[5\], where another denoiser takes over"):
        calibrate(pipe, PROMPTS[:3], schedule="##..#.####", show_progress=False, **TWO_CALL)


def test_another_time_grid_is_refused(pipe: Any) -> None:
    other = wan22()
    other.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    with pytest.raises(UnsupportedPipeline, match="its time grid decides which of them runs"):
        calibrate(other, PROMPTS[:3], compute_steps=5, timesteps="paper", show_progress=False, **TWO_CALL)


def test_methods_of_one_denoiser_refuse_two(pipe: Any) -> None:
    with pytest.raises(UnsupportedPipeline, match="2 denoisers that take over from each other; this method serves one"):
        denoiser_of(pipe)
    with pytest.raises(UnsupportedPipeline, match="2 denoisers"):
        DeltaDiT().refusal(pipe, TWO_CALL)
    controller = RangeCache(lambda T: {})
    with pytest.raises(UnsupportedPipeline, match="2 denoisers"), attached(pipe, Final(controller)):
        pass


def test_a_watch_counts_both(pipe: Any) -> None:
    with Watch(pipe) as watch, ertacache.apply(pipe, profile(pipe, "output", MASK)):
        latents(pipe)
    assert watch.executed.denoiser_calls == [sum(step) for step in zip(*CALLS, strict=True)]


def test_a_pipeline_of_one_expert_is_one_denoiser(pipe: Any) -> None:
    first = wan22(None)  # without a boundary the second one is never called
    assert denoisers_of(first) == (first.transformer,)
    with seen(first) as found, ertacache.apply(first, profile(first, "output", "##..#.#..#")):
        generate(first, PROMPTS[:1], VIDEO_CALL, output_type="latent")
    assert found.calls == [[2, 2, 0, 0, 2, 0, 2, 0, 0, 2]]
    second = wan22(1.1)  # the low-noise expert alone: it serves every step
    second.transformer = None
    assert denoisers_of(second) == (second.transformer_2,)
    with seen(second) as found, ertacache.apply(second, profile(second, "output", "##..#.#..#")):
        generate(second, PROMPTS[:1], VIDEO_CALL, output_type="latent")
    assert found.calls == [[2, 2, 0, 0, 2, 0, 2, 0, 0, 2]]


def test_a_checkpoint_belongs_to_one_boundary(pipe: Any, tmp_path: Path) -> None:
    def names(ratio: float) -> str:
        return Calibrator._identity(calibrator(ratio))  # pyright: ignore[reportPrivateUsage]

    def calibrator(ratio: float) -> Calibrator:
        found = Calibrator.__new__(Calibrator)
        found.pipe, found.call, found.seed = wan22(ratio), TWO_CALL, 0
        found.batch_size = found.teacher = found.small = None
        found.parts = Parts(*[Prompts(("x",), 0)] * 3)
        return found

    assert names(0.8) == names(0.8) != names(0.7)


def test_the_boundary_is_where_it_was_expected(pipe: Any) -> None:
    assert (base_sigmas(pipe)[:-1] >= 0.8).sum() == BOUNDARY
