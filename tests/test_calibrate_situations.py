"""`calibrate` on a pipeline in another state than a fresh one: right, or refused by name before anything is spent."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from torch import nn

import ertacache
import pipelines
import small_odd_loops
import small_token_images
from dummy_pipeline import PROMPTS, DummyPipeline, mixture_pipeline, untimed
from ertacache.baselines.catalogue import method
from ertacache.calibration.calibrate import calibrate
from ertacache.errors import CacheConflict, UnsupportedPipeline
from ertacache.evaluation.ablation_run import AblationRun
from ertacache.evaluation.comparison.entrant import Entrant
from ertacache.evaluation.comparison.job import Job
from ertacache.evaluation.comparison.run import run_comparison
from supported import MASK, Small
from video_profiles import wan22

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell")

T = 9
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": 5.0}
CHOICES: dict[str, Any] = {"compute_steps": 4, "effort": "fast", "show_progress": False}


def calibrated(pipe: Any, **options: Any) -> ertacache.Profile:
    return calibrate(pipe, PROMPTS, **{**CHOICES, **CALL, **options})


def generated(pipe: DummyPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config()
    return pipe(PROMPTS[:1], generator=[torch.Generator().manual_seed(0)], **CALL)[0]


class Ended(DummyPipeline):
    """A run that ends before its last step: interrupted, or told to with `denoising_end`."""

    @functools.wraps(DummyPipeline.__call__)
    def __call__(self, *args: Any, **more: Any) -> Any:
        scheduler = self.scheduler
        set_timesteps = scheduler.set_timesteps

        def cut(*given: Any, **options: Any) -> None:
            set_timesteps(*given, **options)
            if self.calls >= self.whole:
                scheduler.timesteps = scheduler.timesteps[: self.made]

        scheduler.set_timesteps = cut
        try:
            return super().__call__(*args, **more)
        finally:
            scheduler.set_timesteps = set_timesteps


@pytest.mark.parametrize(("made", "whole"), [(0, 1), (7, 2), (7, 3), (7, 4)])
def test_a_run_that_ends_early_is_refused(made: int, whole: int):
    pipe = Ended(mixture_pipeline().transformer, (4, 4), branches=True)
    pipe.made, pipe.whole = made, whole
    message = f"ended after {made} of 9 steps; calibrate on whole runs, which" if made else "ran no step of its"
    with pytest.raises(UnsupportedPipeline, match=message):
        calibrated(pipe)
    assert pipe.calls == whole


def test_an_interrupt_left_over_from_an_earlier_call_ends_no_run():
    flux = small_token_images.flux()
    options = {"schedule": MASK, "basis": "residual", "holdout": 0.34, "show_progress": False}
    expected = calibrate(flux.pipe, flux.prompts, **options, **flux.call)
    flux.pipe._interrupt = True
    assert untimed(calibrate(flux.pipe, flux.prompts, **options, **flux.call)) == untimed(expected)


def test_a_pipeline_with_a_profile_is_refused_before_it_runs():
    pipe = mixture_pipeline()
    profile, runs = calibrated(pipe), pipe.calls
    with ertacache.apply(pipe, profile), pytest.raises(CacheConflict, match="a profile is already applied to this"):
        calibrated(pipe)
    assert pipe.calls == runs and untimed(calibrated(pipe)) == untimed(profile)


def test_a_pipeline_with_another_cache_is_refused():
    pipe = pipelines.flux()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(CacheConflict, match=r"another cache is enabled on FluxTransformer2DModel; take it off"):
        calibrate(pipe, pipelines.PROMPTS[:2], **CHOICES, **pipelines.CALL)
    pipe.transformer.disable_cache()


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_denoiser_gives_the_same_profile(how: str):
    pipe = pipelines.flux()
    options = {**CHOICES, **pipelines.CALL, "num_inference_steps": 8}
    expected = calibrate(pipe, pipelines.PROMPTS[:2], **options)
    if how == "in place":
        pipe.transformer.compile(backend="eager")
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    found = calibrate(pipe, pipelines.PROMPTS[:2], **options)
    assert torch.equal(found.predictor.a, expected.predictor.a)
    assert found.provenance.heldout == expected.provenance.heldout


@pytest.mark.parametrize("options", [{}, {"batch_size": 1, "effort": "thorough"}], ids=["one call", "lockstep"])
def test_inference_mode_gives_the_same_profile_which_runs_outside_of_it(options: dict[str, Any]):
    pipe, expected = mixture_pipeline(), calibrated(mixture_pipeline(), **options)
    with torch.inference_mode():
        found = calibrated(pipe, **options)
    assert untimed(found) == untimed(expected)
    images: list[torch.Tensor] = []
    for profile in (found, expected):
        with ertacache.apply(pipe, profile):
            images.append(generated(pipe))
    assert torch.equal(*images) and found.to_bytes()


@pytest.mark.parametrize("at", [7, 25, 60], ids=["uncached run", "closed loop", "judged run"])
def test_ctrl_c_leaves_the_pipeline_as_it_was_and_the_checkpoint_goes_on(at: int, tmp_path: Path):
    expected, pipe, path = calibrated(mixture_pipeline()), mixture_pipeline(), tmp_path / "runs.pt"
    plain = generated(pipe)
    before = [set(vars(part)) for part in (pipe.scheduler, pipe.transformer)]
    seen = [0]

    def stop(module: nn.Module, given: Any) -> None:
        seen[0] += 1
        if seen[0] == at:
            raise KeyboardInterrupt

    handle = pipe.transformer.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        calibrated(pipe, checkpoint=path)
    handle.remove()
    assert [set(vars(part)) for part in (pipe.scheduler, pipe.transformer)] == before
    assert torch.equal(generated(pipe), plain)
    done = pipe.calls - 3  # two of our own, and the one that was cut off
    found, whole = calibrated(pipe, checkpoint=path), mixture_pipeline()
    assert untimed(found) == untimed(expected)
    calibrated(whole)
    assert pipe.calls - 3 == whole.calls > done  # no finished run is made again


AGAIN = r"the pipeline runs its solver again within one call \(sections, windows or segments\)"


@pytest.fixture(scope="module")
def sections() -> Small:
    return small_odd_loops.framepack(26)


def denoiser_calls(pipe: Any) -> list[int]:
    seen = [0]
    pipe.transformer.register_forward_pre_hook(lambda *_: seen.__setitem__(0, seen[0] + 1))
    return seen


def test_calibrate_refuses_several_runs_after_the_first(sections: Small):
    seen = denoiser_calls(sections.pipe)
    with pytest.raises(UnsupportedPipeline, match=AGAIN):
        calibrate(
            sections.pipe, sections.prompts, **CHOICES, inputs=[sections.inputs] * 3, batch_size=1, **sections.call
        )
    assert seen[0] == 2 + sections.call["num_inference_steps"]  # the first steps, which tell what all will take


def twice(pipe: Any) -> Any:
    """The same pipeline, running its solver twice in one call."""

    class Twice(type(pipe)):
        @functools.wraps(type(pipe).__call__)
        def __call__(self, *args: Any, **more: Any) -> Any:
            super().__call__(*args, **more)
            return super().__call__(*args, **more)

    pipe.__class__ = Twice
    return pipe


def test_compare_and_ablation_refuse_several_runs_after_the_first(tmp_path: Path):
    call = {**pipelines.CALL, "num_inference_steps": 8}
    pipe = twice(pipelines.flux())
    seen = denoiser_calls(pipe)
    job = Job(tuple(pipelines.PROMPTS[:1]), tuple(pipelines.PROMPTS[1:4]), call)
    with pytest.raises(UnsupportedPipeline, match=AGAIN):
        run_comparison(
            pipe, [Entrant("uniform", method("uniform"), 0.5)], job, tmp_path / "compare", show_progress=False
        )
    assert seen[0] == 8
    seen[0] = 0
    ablation = AblationRun(tmp_path / "ablation", pipelines.PROMPTS[:1])
    with pytest.raises(UnsupportedPipeline, match=AGAIN):
        ablation.add(pipe, pipelines.PROMPTS[1:4], [4], call, group="g", show_progress=False)
    assert seen[0] == 8


def test_two_denoisers_are_refused_alike():
    pipe = twice(wan22(boundary_ratio=0.875))
    seen = denoiser_calls(pipe)
    with pytest.raises(UnsupportedPipeline, match=AGAIN):
        calibrate(
            pipe, pipelines.PROMPTS[:2], **CHOICES, **{**pipelines.VIDEO_CALL, "num_inference_steps": 8},
            guidance_scale_2=3.0,
        )  # fmt: skip
    assert 0 < seen[0] <= 2 * 8
