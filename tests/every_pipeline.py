"""The results of all checks of supported pipelines, each of which is run once in a process."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import small_images
import small_modular
import small_odd_loops
import small_open_sora
import small_solvers
import small_videos
from ertacache.pipelines.solvers import grid_refusal
from pipelines import VIDEO_CALL, cogvideox, wan
from small_parts import THREE_PROMPTS
from supported import SITES, Result, Small, T, check
from video_profiles import wan22

_VIDEO_CALL: dict[str, Any] = {**VIDEO_CALL, "num_inference_steps": T}


def _wan22() -> Small:
    notes = ("two denoisers; no prediction crosses from one to the other",)
    call = {**_VIDEO_CALL, "guidance_scale_2": 3.0}
    # The second takes over at step 3, which the schedule computes, as it must.
    return Small(wan22(boundary_ratio=0.875), call, THREE_PROMPTS, notes=notes)


BUILDERS: dict[str, dict[str, Callable[[], Small]]] = {
    "Images": {**small_images.BUILDERS, **small_odd_loops.IMAGES},
    "Videos": {
        "Wan": lambda: Small(wan(), _VIDEO_CALL, THREE_PROMPTS),
        "Wan2.2 A14B": _wan22,
        "CogVideoX": lambda: Small(cogvideox(), _VIDEO_CALL, THREE_PROMPTS),
        "Open-Sora 1.2": small_open_sora.small,
        **small_videos.BUILDERS,
        **small_odd_loops.VIDEOS,
    },
    "Modular Diffusers": small_modular.BUILDERS,
}
NAMES = {name: kind for kind, builders in BUILDERS.items() for name in builders}


@functools.cache
def small(name: str) -> Small:
    return BUILDERS[NAMES[name]][name]()


@functools.cache
def result(name: str, site: str) -> Result:
    return check(small(name), site)


@functools.cache
def solver_result(name: str) -> tuple[Result, str | None]:
    """The check of one scheduler, and why another time grid is refused, if it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array", DeprecationWarning)  # numpy on diffusers' own schedulers
        unet = small_solvers.on_a_small_unet(name)
        return check(unet, "guided"), grid_refusal(unet.pipe.scheduler)


def fresh_page(page: Callable[..., str]) -> str:
    """The page from results of this process, those that are not there yet made now."""
    pipelines: dict[str, Any] = {
        kind: {name: {site: result(name, site) for site in SITES} for name in builders}
        for kind, builders in BUILDERS.items()
    }
    return page(pipelines, {name: solver_result(name) for name in small_solvers.SOLVERS})
