"""Profiles for the random video pipelines, made without calibration, and what a run of them really does."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import WanPipeline

import cached
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.pipelines.models import blocks_of, denoisers_of
from ertacache.pipelines.solvers import read_grid
from ertacache.profile.profile import Profile, Provenance, Site
from ertacache.runtime.identity import identity_of
from pipelines import PROMPTS, VIDEO_CALL, generate, wan

T = VIDEO_CALL["num_inference_steps"]
MASK = "##..#.#..#"
#: Denoiser class -> call names, latent shape without batch axis, and the axis of its channels with it.
LAYOUTS: dict[str, tuple[tuple[str, ...], tuple[int, ...], int]] = {
    "WanTransformer3DModel": (("cond", "uncond"), (4, 3, 4, 4), 1),
    "CogVideoXTransformer3DModel": (("cond_uncond",), (3, 4, 4, 4), 2),
}
#: Of Wan2.2's two denoisers; with the solver of the random pipeline the second takes over at step 5.
TWO_CALL: dict[str, Any] = {**VIDEO_CALL, "guidance_scale_2": 3.0}
BOUNDARY = 5


def wan22(boundary_ratio: float | None = 0.8) -> Any:
    """A WanPipeline with two denoisers of different random weights."""
    parts = {**wan().components, "transformer_2": wan(seed=7).transformer}
    pipe = WanPipeline(**parts, boundary_ratio=boundary_ratio)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def base_sigmas(pipe: Any) -> torch.Tensor:
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(T)
    return read_grid(scheduler)


def provenance(pipe: Any, **changes: Any) -> Provenance:
    """What a calibration of this pipeline with VIDEO_CALL, or TWO_CALL, writes down."""
    contexts, latent_shape, channel_axis = LAYOUTS[type(denoisers_of(pipe)[0]).__name__]
    two = len(denoisers_of(pipe)) > 1
    facts: dict[str, Any] = {
        **identity_of(pipe),
        "num_inference_steps": T,
        "contexts": contexts,
        "guidance_weight": VIDEO_CALL["guidance_scale"],
        "embedded_guidance": None,
        "call": TWO_CALL if two else VIDEO_CALL,
        "latent_shape": latent_shape,
        "channel_axis": channel_axis,
        "boundaries": (BOUNDARY,) if two else (),
        "later_weights": (TWO_CALL["guidance_scale_2"],) if two else (),
    }
    return Provenance(**{**facts, **cached.UNUSED, **changes})


def profile(pipe: Any, site: Site, mask: str = MASK, **changes: Any) -> Profile:
    """Residual reuse at a site, of the residual of the blocks at site hidden."""
    facts = changes.pop("provenance", None) or provenance(pipe)
    return cached.profile(pipe, site, mask, provenance=facts, **{"base_sigmas": base_sigmas(pipe), **changes})


def linear(mask: str, rows: dict[str, dict[str, list[float]]]) -> Predictor:
    """target -> source -> weights of its outputs, newest first: the same at every predicted step."""
    schedule, targets = Schedule.from_mask(mask), tuple(rows)
    sources = tuple(dict.fromkeys(source for row in rows.values() for source in row))
    levels = max(len(weights) for row in rows.values() for weights in row.values())
    a = torch.zeros(schedule.T, len(targets), len(sources), levels)
    for m, row in enumerate(rows.values()):
        for source, weights in row.items():
            a[list(schedule.predicted_steps), m, sources.index(source), : len(weights)] = torch.tensor(weights)
    flat = torch.zeros(schedule.T, len(targets))
    return Predictor(targets, sources, a, flat, flat.clone())


@dataclass
class Seen:
    """One run from below: per step the calls that reached each denoiser, their outputs, and what the solver received.

    Attributes:
        calls: [denoiser][step]
        outputs: [step][call], what the denoisers really returned.
        received: [step]
    """

    calls: list[list[int]]
    outputs: list[list[torch.Tensor]] = field(default_factory=list[list[torch.Tensor]])
    received: list[torch.Tensor] = field(default_factory=list[torch.Tensor])


@contextmanager
def seen(pipe: Any) -> Iterator[Seen]:
    """Put on before the profile: hooks inside of the denoisers, and around the solver's own step."""
    denoisers = denoisers_of(pipe)
    found = Seen([[] for _ in denoisers])
    ran, outputs = [0 for _ in denoisers], list[torch.Tensor]()
    handles: list[Any] = []
    for n, denoiser in enumerate(denoisers):

        def count(*_: Any, n: int = n) -> None:
            ran[n] += 1

        # Inside of the first block: the blocks themselves are passed by at site hidden.
        handles.append(blocks_of(denoiser)[0].attn1.register_forward_hook(count))
        handles.append(denoiser.register_forward_hook(lambda m, a, out: outputs.append(out[0].clone())))
    own = type(pipe.scheduler).step

    def step(self: Any, model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        for n, calls in enumerate(found.calls):
            calls.append(ran[n])
            ran[n] = 0
        found.outputs.append([*outputs])
        outputs.clear()
        found.received.append(model_output.clone())
        return own(self, model_output, *args, **kwargs)

    step.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    pipe.scheduler.step = step.__get__(pipe.scheduler)
    try:
        yield found
    finally:
        del pipe.scheduler.step
        for handle in handles:
            handle.remove()


def latents(pipe: Any, prompts: list[str] = PROMPTS[:1], **more: Any) -> torch.Tensor:
    """Final latents of one run."""
    call = TWO_CALL if len(denoisers_of(pipe)) > 1 else VIDEO_CALL
    return generate(pipe, prompts, {**call, "output_type": "latent"}, **more)
