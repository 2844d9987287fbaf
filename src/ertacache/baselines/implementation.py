"""Whether a cache runs as diffusers has it, or as we have it: with its state kept apart by branch."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ertacache.baselines import diffusers_cache
from ertacache.baselines.baseline import denoiser_class
from ertacache.errors import InvalidArgument
from ertacache.pipelines.pipeline_call import defaults_of

#: "auto" is diffusers' own where that is right, ours elsewhere.
Implementation = Literal["auto", "diffusers", "ours"]
#: One branch; both branches in one batch; or one call after the other, the conditional one first.
Branches = Literal["one", "batch", "calls"]

#: Denoiser class -> argument of the pipeline call that turns on guidance from two branches above 1, and how they come.
_GUIDANCE: dict[str, tuple[str, Branches]] = {
    "FluxTransformer2DModel": ("true_cfg_scale", "calls"),
    "WanTransformer3DModel": ("guidance_scale", "calls"),
    "CogVideoXTransformer3DModel": ("guidance_scale", "batch"),
    "STDiT3Transformer3DModel": ("guidance_scale", "batch"),
}


def branches(pipe: Any, call: Mapping[str, Any]) -> Branches:
    """How guidance reaches the denoiser in a call with these arguments; "calls", the careful answer, if unknown."""
    denoiser = denoiser_class(pipe)
    if denoiser not in _GUIDANCE:
        return "calls"
    argument, two = _GUIDANCE[denoiser]
    defaults = defaults_of(pipe)
    if argument not in defaults:
        return "one"
    # FLUX leaves the second branch out without a negative prompt; the others take an empty one.
    needs_negative = argument == "true_cfg_scale"
    negative = call.get("negative_prompt") is not None or call.get("negative_prompt_embeds") is not None
    guided = call.get(argument, defaults[argument]) > 1 and (negative or not needs_negative)
    return two if guided else "one"


def check_implementation(value: str) -> None:
    """Raise InvalidArgument for a name that is none of the implementations."""
    if value not in ("auto", "diffusers", "ours"):
        raise InvalidArgument(f"implementation is {value!r}; choose 'auto', 'diffusers' or 'ours'")


def against_diffusers(pipe: Any, call: Mapping[str, Any]) -> str | None:
    """Why diffusers' implementation of an attention cache would be wrong here; None where it is right."""
    if reason := diffusers_cache.refusal(pipe):
        return reason
    if not hasattr(type(pipe), "current_timestep"):
        return f"{type(pipe).__name__} has no current_timestep"
    if branches(pipe, call) == "calls":
        return "each step makes two denoiser calls, and diffusers keeps one state for both; use implementation='ours'"
    return None


def by_diffusers(implementation: Implementation, pipe: Any, call: Mapping[str, Any]) -> bool:
    """Whether diffusers' implementation runs."""
    return implementation == "diffusers" or (implementation == "auto" and against_diffusers(pipe, call) is None)


def timestep_of(pipe: Any) -> Callable[[], float]:
    """What diffusers' configs ask for the timestep of the step under way.

    It is infinite, and so outside of every window, in the first step of a run and outside of runs: diffusers fails
    where it should reuse before it has computed anything.
    """

    def current() -> float:
        # Before its first run a pipeline has the property and nothing behind it.
        timestep, scheduler = getattr(pipe, "current_timestep", None), pipe.scheduler
        if timestep is None or timestep == scheduler.timesteps[getattr(scheduler, "begin_index", None) or 0]:
            return math.inf
        return float(timestep)

    return current
