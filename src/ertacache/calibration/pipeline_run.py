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
from ertacache.calibration.followed import Followed
from ertacache.calibration.prompts import Prompts
from ertacache.errors import ErtacacheError, InvalidArgument, meant
from ertacache.pipelines import pipeline_call
from ertacache.pipelines.inputs import Inputs, digest, embedded, input_names, is_text, joined
from ertacache.pipelines.models import denoisers_of, takes_one_prompt
from ertacache.pipelines.solvers import read_grid
from ertacache.runtime.hooks import attached
from ertacache.runtime.run import Controller, Run

_OURS = (
    "prompt", "generator", "output_type", "return_dict", "latents", "callback_on_step_end", "num_images_per_prompt",
    "num_videos_per_prompt", "batch_size",
)  # fmt: skip
#: Arguments that count something, by what they count.
_COUNTS = {
    "num_inference_steps": "the steps of the solver", "height": "pixels", "width": "pixels", "num_frames": "frames",
}  # fmt: skip
#: Further ones that are one for all prompts.
_FOR_ALL = (*_COUNTS, "guidance_scale", "true_cfg_scale")
#: What else decides the steps of a run or their guidance: a prompt may bring it if all bring the same.
_ALIKE = re.compile(
    r"sigmas|timesteps|strength|denoising_(start|end)|eta|mu|shift|(\w*_)?(guidance_(re)?scale|cfg_scale)(_2)?"
)
#: What torch says of embeddings of another dtype, on another device or of another text encoder.
_UNFIT = re.compile(r"dtype|scalar type|same device|shapes cannot be multiplied|must match the size|normalized_shape")
#: The longest text of a pipeline's own error that is passed on.
_LONGEST = 300


def check_call(
    pipe: Any, call: Mapping[str, Any], inputs: Sequence[Inputs] = (), own: Iterable[str] = (), *, texts: bool = True
) -> None:
    """Refuse call arguments that the pipeline lacks, that are decided here or that a profile cannot hold.

    Args:
        inputs: what each prompt brings along; no profile holds it.
        own: other arguments that may have been meant by an unknown one.
        texts: whether there are prompts beside the inputs.

    Raises:
        InvalidArgument: naming the argument, and the one that may have been meant.
        UnsupportedPipeline: `pipe` is no pipeline with a denoiser.
    """
    denoisers_of(pipe)
    known = pipeline_call.defaults_of(pipe)
    brought = input_names(inputs)
    if not texts and "prompt" in known and not embedded(inputs):
        raise InvalidArgument(
            f"{type(pipe).__name__} needs prompts; give texts, or what its encode_prompt makes of them: "
            'inputs=[{"prompt_embeds": ...}, ...]'
        )
    for name in (*call, *brought):
        if name in _OURS:
            raise InvalidArgument(f"{name!r} is set by this package for each prompt; leave it out")
        if name not in known:
            ours = own if name in call else ()  # what comes with a prompt can only be the pipeline's
            near = meant(name, (*ours, *known)) or f"; {type(pipe).__name__} takes {', '.join(known)}"
            raise InvalidArgument(f"no argument {name!r}{near}")
        if name in call and name in brought:
            raise InvalidArgument(f"{name!r} is given for all prompts and in inputs for each; give it once")
        if name in brought and name in _FOR_ALL:
            raise InvalidArgument(f"{name!r} is one for all prompts; give it in call, not in inputs")
        if name in brought and _ALIKE.fullmatch(name) and len({digest([{name: one[name]}]) for one in inputs}) > 1:
            raise InvalidArgument(f"{name!r} is one for all prompts, and differs in inputs; give it in call")
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


def check_batches(pipe: Any, parts: Iterable[Prompts], size: int | None, call: dict[str, Any]) -> None:
    """Refuse prompts that one call cannot take together, before any is made.

    Args:
        parts: of the prompts. size: how many of them a call takes, None for all of a part.

    Raises:
        InvalidArgument: the pipeline takes one prompt at a time, or embeddings differ in shape.
    """
    for part in parts:
        for batch in part.batches(size) if part.texts else []:
            _arguments(pipe, batch, call)


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
        InvalidArgument: the pipeline refuses the call, or fails with the embeddings that prompts bring.
        UnsupportedPipeline: it returns something else than tensors.
    """
    arguments = _arguments(pipe, prompts, call)
    with quiet(pipe):
        try:
            output = pipeline_call.call(pipe, arguments, decode=decode)
        except ValueError as error:  # what pipelines raise for sizes and arguments that they do not take
            if isinstance(error, ErtacacheError):
                raise
            raise InvalidArgument(f"{type(pipe).__name__} refuses the call: {_short(error)}") from error
        except (AttributeError, TypeError) as error:  # what comes of calling None
            if not (gone := _unloaded(pipe)):
                raise
            raise InvalidArgument(
                f"{type(pipe).__name__} has no {' and no '.join(gone)}, and its call fails ({_short(error)}); "
                "give everything that encode_prompt returns for each prompt: "
                'inputs=[{"prompt_embeds": ..., "negative_prompt_embeds": ...}, ...]'
            ) from error
        except RuntimeError as error:
            if not embedded(prompts.inputs) or not _UNFIT.search(str(error)):
                raise
            kinds = [f"{n} {list(v.shape)} {v.dtype}" for n, v in arguments.items() if isinstance(v, Tensor)]
            raise InvalidArgument(
                f"{type(pipe).__name__} fails with {', '.join(kinds)} ({_short(error)}); give what its encode_prompt "
                "returns for each prompt, in the denoiser's dtype"
            ) from error
    return output.float().cpu()


def _arguments(pipe: Any, prompts: Prompts, call: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the call for a batch of prompts."""
    count, known = len(prompts.texts), pipeline_call.defaults_of(pipe)
    generators = [torch.Generator("cpu").manual_seed(prompts.seed + n) for n in range(count)]
    arguments = {**call, "generator": generators, **joined(prompts.inputs)}
    if not embedded(prompts.inputs):
        if "prompt" in known:
            arguments["prompt"] = list(prompts.texts)
        elif "batch_size" in known:
            arguments["batch_size"] = count
    else:
        arguments |= {name: None for name in filter(is_text, known) if _replaced(name, known[name], arguments)}
    for name in filter(is_text, call):
        if isinstance(call[name], str):
            arguments[name] = [call[name]] * count
    if takes_one_prompt(pipe):
        if count > 1:
            raise InvalidArgument(f"{type(pipe).__name__} takes one prompt per call, not {count}; use batch_size=1")
        texts = [name for name in arguments if is_text(name) and isinstance(arguments[name], list)]
        arguments |= {name: arguments[name][0] for name in (*texts, "generator")}
    return arguments


def _short(error: Exception) -> str:
    """What a pipeline says, which may print whole tensors."""
    return " ".join(str(error).split())[:_LONGEST]


def _replaced(name: str, default: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether embeddings stand in place of a text that the pipeline would otherwise take from its default."""
    negative = name.startswith("negative_")
    given = not negative or any(other.startswith("negative_prompt_embed") for other in arguments)
    return default is not None and name not in arguments and given


def _unloaded(pipe: Any) -> list[str]:
    """The text encoders that a pipeline is without."""
    parts: Mapping[str, Any] = getattr(pipe, "components", {})
    return [name for name, part in parts.items() if "text_encoder" in name and part is None]


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
class Final(Followed):
    """Keeps the final latent of a run under another controller and, if asked, what the solver received at each step."""

    keep_outputs: bool = False
    latents: Tensor = field(default_factory=lambda: torch.zeros(0))
    outputs: list[Tensor] = field(default_factory=list[Tensor])
    sigmas: Tensor = field(default_factory=lambda: torch.zeros(0))

    def begin(self, run: Run) -> None:
        self.outputs.clear()
        super().begin(run)
        self.sigmas = read_grid(run.scheduler)

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        used = super().solve(run, output, x)
        if self.keep_outputs:
            self.outputs.append(used.to("cpu", torch.float32, copy=True))
        return used

    def end_step(self, run: Run, x_next: Tensor) -> None:
        super().end_step(run, x_next)
        self.latents = x_next.to("cpu", torch.float32, copy=True)
