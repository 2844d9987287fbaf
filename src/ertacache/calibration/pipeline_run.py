"""Runs of a user's pipeline, as it is, under a controller: one generator per prompt, results in plain tensors."""

import json
import re
import reprlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.checks import check_whole
from ertacache.calibration.prompts import Prompts
from ertacache.errors import ErtacacheError, InvalidArgument, meant
from ertacache.pipelines import pipeline_call
from ertacache.pipelines.inputs import Inputs, input_names
from ertacache.pipelines.models import denoisers_of, takes_one_prompt
from ertacache.pipelines.solvers import read_grid
from ertacache.runtime.hooks import attached
from ertacache.runtime.run import Controller, Run

_OURS = (
    "prompt", "generator", "output_type", "return_dict", "latents", "callback_on_step_end", "num_images_per_prompt",
    "num_videos_per_prompt",
)  # fmt: skip
#: Arguments that count something, by what they count.
_COUNTS = {
    "num_inference_steps": "the steps of the solver", "height": "pixels", "width": "pixels", "num_frames": "frames",
}  # fmt: skip
_TEXT = re.compile(r"(negative_)?prompt(_\d+)?")


def check_call(pipe: Any, call: Mapping[str, Any], inputs: Sequence[Inputs] = (), own: Iterable[str] = ()) -> None:
    """Refuse call arguments that the pipeline lacks, that are decided here or that a profile cannot hold.

    Args:
        inputs: what each prompt brings along; no profile holds it.
        own: other arguments that may have been meant by an unknown one.

    Raises:
        InvalidArgument: naming the argument, and the one that may have been meant.
        UnsupportedPipeline: `pipe` is no pipeline with a denoiser.
    """
    denoisers_of(pipe)
    known = pipeline_call.defaults_of(pipe)
    brought = input_names(inputs)
    for name in (*call, *brought):
        if name in _OURS:
            raise InvalidArgument(f"{name!r} is set by this package for each prompt; leave it out")
        if name not in known:
            near = meant(name, (*own, *known)) or f"; {type(pipe).__name__} takes {', '.join(known)}"
            raise InvalidArgument(f"no argument {name!r}{near}")
        if name in call and name in brought:
            raise InvalidArgument(f"{name!r} is given for all prompts and in inputs for each; give it once")
    for name, why in _COUNTS.items():
        if call.get(name) is not None:
            check_whole(name, call[name], 1, why)
    for name, value in call.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(
                f"{name}={reprlib.repr(value)} cannot be written in a profile ({error}); calibrate with numbers, texts "
                f"and lists of them, or give it for each prompt: inputs=[{{{name!r}: ...}}, ...]"
            ) from error


def run_pipeline(
    pipe: Any,
    prompts: Prompts,
    controller: Controller,
    call: dict[str, Any],
    *,
    hidden: bool = False,
    decode: bool = True,
) -> Tensor:
    """`call_pipeline` under a controller."""
    with attached(pipe, controller, hidden):
        return call_pipeline(pipe, prompts, call, decode=decode)


@torch.no_grad()
def call_pipeline(pipe: Any, prompts: Prompts, call: dict[str, Any], *, decode: bool = True) -> Tensor:
    """One call of the pipeline for a batch of prompts.

    Returns:
        Images [B, 3, H, W] (or frames [B, F, 3, H, W]) float32 in [0, 1] on the CPU; the final latents where `decode`
        is False.

    Raises:
        InvalidArgument: the pipeline refuses the call.
        UnsupportedPipeline: it returns something else than tensors.
    """
    count = len(prompts.texts)
    generators = [torch.Generator("cpu").manual_seed(prompts.seed + n) for n in range(count)]
    arguments = {**call, "prompt": list(prompts.texts), "generator": generators}
    for name in filter(_TEXT.fullmatch, call):
        if isinstance(call[name], str):
            arguments[name] = [call[name]] * count
    for name in input_names(prompts.inputs):
        values = [given[name] for given in prompts.inputs]
        # Bare for a batch of one: not every pipeline takes a list of images or clips.
        arguments[name] = values if count > 1 or _TEXT.fullmatch(name) else values[0]
    if takes_one_prompt(pipe):
        if count > 1:
            raise InvalidArgument(f"{type(pipe).__name__} takes one prompt per call, not {count}; use batch_size=1")
        texts = [name for name in arguments if _TEXT.fullmatch(name) and isinstance(arguments[name], list)]
        arguments |= {name: arguments[name][0] for name in (*texts, "generator")}
    with quiet(pipe):
        try:
            output = pipeline_call.call(pipe, arguments, decode=decode)
        except ValueError as error:  # what pipelines raise for sizes and arguments that they do not take
            if isinstance(error, ErtacacheError):
                raise
            raise InvalidArgument(f"{type(pipe).__name__} refuses the call: {error}") from error
    return output.float().cpu()


@contextmanager
def quiet(pipe: Any) -> Generator[None]:
    """Without the pipeline's own progress bars; ours counts whole runs."""
    before = [(bar, dict(getattr(bar, "_progress_bar_config", {}))) for bar in pipeline_call.progress_bars(pipe)]
    for bar, config in before:
        bar.set_progress_bar_config(**{**config, "disable": True})
    try:
        yield
    finally:
        for bar, config in before:
            bar.set_progress_bar_config(**config)


@dataclass
class Final(Controller):
    """Keeps the final latent of a run under another controller and, if asked, what the solver received at each step."""

    inner: Controller = field(default_factory=Controller)
    keep_outputs: bool = False
    latents: Tensor = field(default_factory=lambda: torch.zeros(0))
    outputs: list[Tensor] = field(default_factory=list[Tensor])
    sigmas: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        self.several = self.inner.several
        self._follow(self.inner)

    def _follow(self, inner: Controller) -> None:
        self._now, self.call_names = inner, inner.call_names
        self.placeholders, self.replays = inner.placeholders, inner.replays

    def for_run(self, run: Run) -> Controller:
        self._follow(self.inner.for_run(run))
        return self

    def begin(self, run: Run) -> None:
        self.outputs.clear()
        self._now.begin(run)
        self.sigmas = read_grid(run.scheduler)

    def call(self, run: Run, context: str, x: Tensor, compute: Any) -> Tensor:
        return self._now.call(run, context, x, compute)

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        used = self._now.solve(run, output, x)
        if self.keep_outputs:
            self.outputs.append(used.to("cpu", torch.float32, copy=True))
        return used

    def end_step(self, run: Run, x_next: Tensor) -> None:
        self._now.end_step(run, x_next)
        self.latents = x_next.float().cpu()

    def end(self, run: Run) -> None:
        self._now.end(run)

    def without(self, run: Run, error: ErtacacheError, *, by_need: bool) -> Controller:
        self._follow(self._now.without(run, error, by_need=by_need))
        return self
