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


#: Without "compute_steps": None, a row is tried with compute_steps=5 beside it.
ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"compute_steps": None}, r"say how much to compute: speedup=2\.0, compute_steps=K or a schedule .* '#\.#\.##'"),
    ({"compute_steps": None, "schedule": "uniform"}, r"how much to compute: speedup=2\.0, compute_steps=K or a sch"),
    ({"compute_steps": None, "method": "ertacache"}, r"speedup=2\.0, compute_steps=K, threshold=λ or a schedule"),
    ({"threshold": 0.1}, "threshold=0.1 excludes compute_steps=5; give one of them"),
    ({"compute_steps": None, "threshold": 0.1, "schedule": "#" * 10}, "threshold=0.1 makes .* schedule='##########' c"),
    ({"compute_steps": None, "threshold": 0.1, "schedule": "uniform"}, "threshold=0.1 makes .* schedule='uniform' con"),
    *(
        ({"compute_steps": None, "threshold": value}, rf"threshold is {value!r}; choose a positive λ, such as 0\.1")
        for value in (0.0, -1, float("nan"), float("inf"), True)
    ),
    *(
        ({"compute_steps": value}, f"compute_steps is {value!r}; choose a whole number of 2 or more: the first and the")
        for value in (1, 0, -3, 5.0, True)
    ),
    *(
        ({"compute_steps": None, name: "5"}, f"{name} is '5'; give a number, or a list of one number or more")
        for name in ("compute_steps", "speedup", "target_psnr", "max_seconds", "threshold")
    ),
    ({"compute_steps": 11}, "compute_steps is 11; choose 2 to 10 of 10 steps"),
    ({"compute_steps": 1, "schedule": "uniform"}, "compute_steps is 1; choose a whole number of 2 or more"),
    ({"compute_steps": None, "schedule": "#.#"}, "the schedule has 3 steps and the pipeline call 10; make them agree"),
    ({"schedule": "##########"}, "compute_steps=5, but schedule='##########' computes 10; give one of them"),
    ({"schedule": "#,########"}, "write '#' for computed, '.' for predicted"),
    ({"schedule": ".#########"}, "predicts step 0, which has no history"),
    ({"schedule": [True] * 10}, r"schedule is \[True, .*; give 'uniform', 'policy' or text such as '#\.#\.##'"),
    ({"method": "paper"}, "method is 'paper'; choose one of 'fitted', 'ertacache'"),
    ({"basis": "guess"}, "basis is 'guess'; choose one of 'reuse', 'residual', 'fitted'"),
    ({"aim": "end"}, "aim is 'end'; choose one of 'step', 'trajectory', 'auto'"),
    ({"method": "ertacache", "aim": "step"}, "aim='step' is of the fitted basis and contradicts basis='residual' of m"),
    ({"basis": "reuse", "history": 2}, "history=2 is of the fitted basis and contradicts basis='reuse'; leave it out"),
    ({"site": "hidden", "aim": "trajectory"}, "aim='trajectory' is of the fitted basis and contradicts basis='residua"),
    ({"site": "output", "aim": "trajectory"}, "aim='trajectory' is of site='guided', not site='output'; use aim='step"),
    ({"aim": "trajectory", "timesteps": 0.3}, "aim='trajectory' needs the solver's own grid, not timesteps=0.3; use a"),
    ({"aim": "trajectory", "timesteps": "auto"}, "needs the solver's own grid, not timesteps='auto'"),
    ({"aim": "trajectory", "rectifier": "scalar"}, "aim='trajectory' and rectifier='scalar' correct the same error tw"),
    ({"site": "input"}, "site is 'input'; choose one of 'output', 'guided', 'hidden'"),
    ({"rectifier": "pixel"}, "rectifier is 'pixel'; choose one of 'none', 'scalar', 'channel', 'element'"),
    ({"rectifier": "scalar", "activation": "relu"}, "activation is 'relu'; choose one of 'linear', 'sigmoid'"),
    ({"activation": "sigmoid"}, "activation='sigmoid' belongs to a rectifier, not rectifier='none'; use 'channel'"),
    ({"timesteps": "best"}, "timesteps is 'best'; choose one of 'none', 'paper', 'auto'"),
    *(
        ({"timesteps": value}, rf"timesteps is {value}; choose 'none', 'paper', 'auto' or a strength from 0 \(none\) t")
        for value in (1.5, -0.1, float("nan"), True)
    ),
    ({"timesteps": [9, 5]}, r"timesteps is \[9, 5\]; .*a pipeline's own argument of that name cannot be given"),
    *(
        ({"history": value}, f"history is {value!r}; choose a whole number of 1 or more: a depth, or 'auto'")
        for value in (0, -1, 2.5, True, "all")
    ),
    ({"site": "hidden", "basis": "fitted"}, "site='hidden' holds residuals only, but basis='fitted'; use basis='resid"),
    ({"site": "hidden", "basis": "reuse"}, "site='hidden' holds residuals only, but basis='reuse'; use basis='residua"),
    *(
        ({"ridge": value}, f"ridge is {value!r}; choose 0 for plain least squares, more to shrink")
        for value in (-1.0, float("nan"), float("inf"), "0.1")
    ),
    *(
        ({"batch_size": value}, f"batch_size is {value!r}; choose a whole number of 1 or more: prompts per pipeline ca")
        for value in (0, -2, 1.5, True)
    ),
    *(
        ({"holdout": value}, f"holdout is {value!r}; choose a share between 0 and 1, such as 0.2")
        for value in (0, 0.0, 1, 2, -0.1, float("nan"), True, "half")
    ),
    *(
        ({"choose": value, **more}, f"choose is {value!r}; choose a share from 0 to below 1, such as 0.2")
        for value in (1, -0.1, float("nan"), True, "half", None)
        for more in ({}, {"effort": "fast"})
    ),
    *(
        ({"seed": value}, f"seed is {value!r}; choose a whole number from 0 to 9223372036854775807: prompt n starts fr")
        for value in (2**64, 2**63, -1, True, 1.0)
    ),
    *(
        ({"num_inference_steps": value}, f"num_inference_steps is {value!r}; choose a whole number of 1 or more: the s")
        for value in (0, -3, 10.0, True, "10")
    ),
    ({"prompts": []}, r"0 prompt\(s\) given; calibrate with at least 2"),
    ({"prompts": ["one"]}, r"1 prompt\(s\) given; calibrate with at least 2"),
    ({"prompts": "a single text"}, r"1 prompt\(s\) given; calibrate with at least 2"),
    ({"prompts": ["one", 2]}, "prompt 2 is a int; give texts"),
    ({"prompts": None}, 'DummyPipeline needs prompts; give texts, or what its encode_prompt makes of them: '),
    ({"generator": None}, "'generator' is set by this package for each prompt; leave it out"),
    ({"output_type": "pil"}, "'output_type' is set by this package"),
    ({"num_images_per_prompt": 2}, "'num_images_per_prompt' is set by this package"),
    ({"compute_step": 15}, "no argument 'compute_step'; did you mean compute_steps?"),
    ({"guidance": 4.0}, "no argument 'guidance'; did you mean guidance_scale?"),
    ({"heigth": 64}, "no argument 'heigth'; DummyPipeline takes prompt, num_inference_steps, guidance_scale"),
    ({"compute_step": 15, "holdout": 2, "prompts": [], "method": "best"}, "no argument 'compute_step'; did you mean"),
    ({"extra": torch.ones(3)}, r"extra=tensor\(.*\) cannot be written in a profile .*calibrate with numbers"),
    ({"guidance_scale": float("inf")}, "guidance_scale=inf cannot be written in a profile"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), ARGUMENTS, ids=lambda value: str(value)[:40])
def test_arguments_are_refused_before_any_run(options: dict[str, Any], message: str):
    refused(InvalidArgument, message, **{"compute_steps": 5, **options})


def test_where_the_call_does_not_say_its_number_of_steps_the_uncached_run_does():
    sigmas = {"sigmas": [1 - n / 10 for n in range(10)], "num_inference_steps": None}
    refused(InvalidArgument, "compute_steps is 11; choose 2 to 10 of 10 steps", compute_steps=11, runs=1, **sigmas)
    refused(InvalidArgument, "has 3 steps and the pipeline call 10; make them agree", schedule="#.#", runs=1, **sigmas)
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
    refused(UnsupportedPipeline, message, pipe, compute_steps=5, aim="trajectory")


@pytest.mark.parametrize("pipe", [None, 3, "tiny-flux"])
def test_what_is_no_pipeline_is_refused(pipe: Any):
    with pytest.raises(UnsupportedPipeline, match=rf"{type(pipe).__name__} has no denoiser modules; pass a diffusers"):
        calibrate(pipe, PROMPTS, compute_steps=4)


@pytest.mark.parametrize(
    ("name", "value"), [("height", -64), ("height", 0), ("width", "a"), ("width", 64.0), ("num_frames", True)]
)
def test_sizes_that_count_nothing_are_refused(name: str, value: Any):
    pipe = mixture_pipeline()
    own = type(pipe).__call__

    class Sized(type(pipe)):
        def __call__(
            self, prompt: Any, height: Any = None, width: Any = None, num_frames: Any = None, **more: Any
        ) -> Any:
            return own(self, prompt, **more)

    pipe.__class__ = Sized
    with pytest.raises(InvalidArgument, match=rf"{name} is {value!r}; choose a whole number of 1 or more: "):
        calibrate(pipe, PROMPTS, compute_steps=4, **{name: value})
    assert pipe.calls == 0
