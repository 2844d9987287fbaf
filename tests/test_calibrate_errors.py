"""What `calibrate` refuses: each with the value and the remedy, before the pipeline has run where that is possible."""

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, UniPCMultistepScheduler

from dummy_pipeline import PROMPTS, DummyPipeline, mixture_pipeline
from ertacache.calibration.calibrate import calibrate
from ertacache.errors import InvalidArgument, ScheduleInvalid, UnsupportedPipeline

CALL: dict[str, Any] = {"num_inference_steps": 10, "show_progress": False}


def refused(error: type[Exception], message: str, pipe: DummyPipeline | None = None, runs: int = 0, **options: Any):
    pipe = pipe or mixture_pipeline()
    prompts = options.pop("prompts", PROMPTS)
    with pytest.raises(error, match=message):
        calibrate(pipe, prompts, **{**CALL, **options})
    assert pipe.calls == runs


ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({}, "say how much to compute: threshold=λ, compute_steps=K or schedule="),
    ({"threshold": 0.1, "compute_steps": 5}, "threshold excludes compute_steps and schedule; give one"),
    ({"threshold": 0.1, "schedule": "#" * 10}, "threshold excludes compute_steps and schedule; give one"),
    ({"threshold": 0.0}, r"threshold is 0.0; choose a positive λ"),
    ({"threshold": float("nan")}, "threshold is nan; choose a positive λ"),
    ({"threshold": float("inf")}, "threshold is inf; choose a positive λ"),
    ({"compute_steps": 1}, "compute_steps is 1; choose 2 or more"),
    ({"compute_steps": 1, "schedule": "uniform"}, "compute_steps is 1; choose 2 or more"),
    ({"schedule": "uniform"}, "schedule='uniform' needs compute_steps=K"),
    ({"schedule": "##########", "compute_steps": 4}, "compute_steps=4, but the schedule computes 10; give one"),
    ({"schedule": "#,########"}, "write '#' for computed, '.' for predicted"),
    ({"schedule": ".#########"}, "predicts step 0, which has no history"),
    ({"basis": "guess"}, "basis is 'guess'; choose one of 'reuse', 'residual', 'fitted'"),
    ({"aim": "end"}, "aim is 'end'; choose one of 'step', 'trajectory', 'auto'"),
    ({"compute_steps": 5, "aim": "trajectory"}, "aim='trajectory' is of the fitted basis at site 'guided'"),
    ({"compute_steps": 5, "basis": "fitted", "aim": "trajectory", "timesteps": 0.3}, "needs the solver's own grid"),
    ({"compute_steps": 5, "basis": "fitted", "aim": "trajectory", "rectifier": "scalar"}, "the same error twice"),
    ({"site": "input"}, "site is 'input'; choose one of None, 'output', 'guided', 'hidden'"),
    ({"rectifier": "pixel"}, "rectifier is 'pixel'; choose one of 'none', 'scalar', 'channel', 'element'"),
    ({"rectifier": "scalar", "activation": "relu"}, "activation is 'relu'; choose one of 'linear', 'sigmoid'"),
    ({"activation": "sigmoid"}, "activation='sigmoid' belongs to a rectifier; choose rectifier='channel'"),
    ({"timesteps": "best"}, "timesteps is 'best'; choose one of 'none', 'paper', 'auto'"),
    ({"timesteps": 1.5}, r"timesteps is 1.5; choose a strength from 0 \(none\) to 1"),
    ({"timesteps": float("nan")}, "timesteps is nan; choose a strength"),
    ({"history": 0}, "history is 0; choose a depth from 1, or 'auto'"),
    ({"history": "all"}, "history is 'all'; choose a depth from 1, or 'auto'"),
    ({"site": "hidden", "basis": "fitted"}, "site 'hidden' holds residuals only; use basis='residual', not 'fitted'"),
    ({"site": "hidden", "basis": "reuse"}, "site 'hidden' holds residuals only; use basis='residual', not 'reuse'"),
    ({"ridge": -1.0}, "ridge is -1.0; choose 0 for plain least squares, more to shrink"),
    ({"ridge": float("inf")}, "ridge is inf; choose 0"),
    ({"batch_size": 0}, "batch_size is 0; choose 1 or more prompts per call, or None"),
    ({"holdout": 0.0}, "holdout is 0.0; choose a share between 0 and 1"),
    ({"holdout": 1.0}, "holdout is 1.0; choose a share between 0 and 1"),
    ({"prompts": ["one"]}, r"1 prompt\(s\) given; calibrate with at least 2"),
    ({"prompts": "a single text"}, r"1 prompt\(s\) given; calibrate with at least 2"),
    ({"prompts": ["one", 2]}, "prompt 2 is a int; give texts"),
    ({"generator": None}, "'generator' is set by this package for each prompt; leave it out"),
    ({"output_type": "pil"}, "'output_type' is set by this package"),
    ({"num_images_per_prompt": 2}, "'num_images_per_prompt' is set by this package"),
    ({"heigth": 64}, "DummyPipeline takes no argument 'heigth'; it takes prompt, num_inference_steps, guidance_scale"),
    ({"extra": torch.ones(3)}, r"extra=tensor\(.*\) cannot be written in a profile .*calibrate with numbers"),
    ({"guidance_scale": float("inf")}, "guidance_scale=inf cannot be written in a profile"),
]  # fmt: skip
#: What already says how much to compute.
BUDGETS = {"threshold", "compute_steps", "schedule"}


@pytest.mark.parametrize(("options", "message"), ARGUMENTS, ids=lambda value: str(value)[:40])
def test_arguments_are_refused_before_any_run(options: dict[str, Any], message: str):
    budget = {} if not options or BUDGETS & options.keys() else {"threshold": 0.1}
    refused(InvalidArgument, message, **budget, **options)


def test_what_depends_on_the_number_of_steps_is_refused_after_the_uncached_run():
    refused(InvalidArgument, "compute_steps is 11; choose 2 to 10 of 10 steps", compute_steps=11, runs=1)
    refused(InvalidArgument, "compute_steps is 11; choose 2 to 10 of 10", compute_steps=11, schedule="uniform", runs=1)
    refused(
        InvalidArgument, "the schedule has 3 steps and the pipeline call 10; make them agree", schedule="#.#", runs=1
    )
    assert issubclass(ScheduleInvalid, InvalidArgument)


def test_pipelines_that_cannot_be_served_are_refused_before_any_run():
    refused(UnsupportedPipeline, "site 'hidden' is not known for NamedMixtureModule; use site 'output'",
            site="hidden", threshold=0.1)  # fmt: skip
    pipe = mixture_pipeline()
    pipe.scheduler = UniPCMultistepScheduler()
    refused(UnsupportedPipeline, "the time grid of UniPCMultistepScheduler cannot be changed", pipe, threshold=0.1,
            timesteps="auto")  # fmt: skip
    pipe = mixture_pipeline()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    refused(UnsupportedPipeline, "FlowMatchHeunDiscreteScheduler evaluates the denoiser 2 times", pipe, threshold=0.1)
    pipe = mixture_pipeline()
    del pipe.transformer
    refused(UnsupportedPipeline, "DummyPipeline has no denoiser modules", pipe, threshold=0.1)


def test_a_late_start_is_no_run_to_calibrate_on():
    pipe = mixture_pipeline()
    pipe.start = 3
    refused(UnsupportedPipeline, "the run starts at step 3; calibrate on a run that starts at step 0", pipe, runs=1,
            threshold=0.1)  # fmt: skip


def test_the_pipeline_is_left_as_it_was_after_a_refusal():
    pipe = mixture_pipeline()
    pipe.set_progress_bar_config(desc="mine")
    pipe.fail_at = 2
    with pytest.raises(ConnectionError):
        calibrate(pipe, PROMPTS, threshold=0.1, **CALL)
    assert not {"forward", "cache_context"} & set(vars(pipe.transformer))
    assert not {"step", "set_timesteps"} & set(vars(pipe.scheduler))
    assert pipe._progress_bar_config == {"desc": "mine"} and pipe.seen[0]["bar"] == {"desc": "mine", "disable": True}


def test_the_trajectory_needs_a_step_that_can_be_inverted():
    pipe = mixture_pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    message = "inverts a step of the solver, which cannot be done for FlowMatchEuler.*it draws noise.*use aim='step'"
    refused(UnsupportedPipeline, message, pipe, compute_steps=5, basis="fitted", aim="trajectory")
