"""Runs of prompts that nothing was fitted to: uncached, under a profile, with fewer steps; each is made once."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.deviation import log10_error
from ertacache.calibration.pipeline_run import Final
from ertacache.calibration.prompts import Prompts
from ertacache.calibration.recorder import UNCACHED
from ertacache.errors import UnsupportedPipeline
from ertacache.metrics import PairedMetrics
from ertacache.pipelines.inputs import input_names
from ertacache.pipelines.pipeline_call import defaults_of
from ertacache.profile.profile import Profile
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.run_stats import RunStats
from ertacache.runtime.watch import now

#: Prompts that candidates are compared on, or that the profile is judged on.
Part = Literal["chosen", "judged"]
#: The uncached run of a batch, and that of a teacher where there is one.
_References = tuple[dict[str, Any], dict[str, Any] | None]


@dataclass
class Clocked(Final):
    """Keeps the final latent of a run under another controller, and the seconds of all its steps but the first.

    In the first step, which every plan computes, a pipeline may still be compiled or warmed up for its batch.
    """

    seconds: float = 0.0

    def end_step(self, run: Run, x_next: Tensor) -> None:
        self._now.end_step(run, x_next)
        if run.steps_done == 0:
            self._start = now()
        if run.step == run.T - 1:
            self.seconds = now() - self._start
            self.latents = x_next.to("cpu", torch.float32, copy=True)


def measure(calibrator: Calibrator, profile: Profile | None, part: Part) -> dict[str, list[float]]:
    """How far a profile's results on one part of the prompts are from the uncached ones, one value per prompt.

    Args:
        profile: None for the uncached runs themselves, which costs no run.

    Returns:
        `psnr` in dB and `ssim` (of a clip, the mean over its frames), `error`: log10 of the relative squared
        deviation of the final latent; infinite, with no psnr and ssim, for prompts that come in one batch with a
        diverged one. With a teacher `teacher_psnr`, `teacher_ssim` and `teacher_error`: the same from its runs.
        Per batch: `uncached` and `cached`, seconds of all steps but the first.
    """
    measure_ahead(calibrator, [profile], part)
    measured: dict[str, list[float]] = {"psnr": [], "ssim": [], "error": [], "uncached": [], "cached": []}
    for n in range(len(batches_of(calibrator, part))):
        for key, values in _measured(calibrator, profile=profile, part=part, n=n).items():
            measured.setdefault(key, []).extend(values)
    return measured


def measure_ahead(calibrator: Calibrator, profiles: Iterable[Profile | None], part: Part) -> None:
    """Where runs are spread, `measure` all of these profiles side by side."""
    _references_ahead(calibrator, part)
    calibrator.ahead(
        {
            _name(profile, part, n): partial(_measured, profile=profile, part=part, n=n)
            for profile in profiles
            for n in range(len(batches_of(calibrator, part)))
        }
    )


def _name(profile: Profile | None, part: Part, n: int) -> str:
    return f"{part} {'uncached' if profile is None else hashlib.sha256(profile.to_bytes()).hexdigest()} {n}"


def _measured(calibrator: Calibrator, *, profile: Profile | None, part: Part, n: int) -> dict[str, list[float]]:
    """`measure` on the n-th batch."""
    batch = batches_of(calibrator, part)[n]
    references = _references(calibrator, part, n)

    def run() -> dict[str, list[float]]:
        result = references[0] if profile is None else _play(calibrator, batch, profile)
        return _against(result, *references, len(batch.texts))

    return calibrator.store.get(_name(profile, part, n), run)


def batches_of(calibrator: Calibrator, part: Part) -> list[Prompts]:
    """The prompts of a part, as they go through the pipeline."""
    prompts: Prompts = getattr(calibrator.parts, part)
    return prompts.batches(calibrator.batch_size) if prompts.texts else []


def measure_fewer_steps(calibrator: Calibrator, K: int) -> dict[str, list[float]]:
    """How far K solver steps without a cache end from all T of them on the judged prompts: see `measure`.

    Raises:
        UnsupportedPipeline: the pipeline cannot make that run.
    """
    shorter_call(calibrator, K)
    count = range(len(batches_of(calibrator, "judged")))
    _references_ahead(calibrator, "judged")
    calibrator.ahead({f"fewer steps {K} {n}": partial(_fewer_steps, K=K, T=calibrator.T, n=n) for n in count})
    measured: dict[str, list[float]] = {"psnr": [], "ssim": [], "error": []}
    for n in count:
        part = _fewer_steps(calibrator, K=K, T=calibrator.T, n=n)
        if not part["psnr"]:
            raise UnsupportedPipeline(f"{K} solver steps end in NaN or infinity")
        for key, values in part.items():
            measured.setdefault(key, []).extend(values)
    return measured


def _fewer_steps(calibrator: Calibrator, *, K: int, T: int, n: int) -> dict[str, list[float]]:
    """`measure_fewer_steps` on the n-th batch."""
    batch = batches_of(calibrator, "judged")[n]
    references = _references(calibrator, "judged", n)

    def run() -> dict[str, list[float]]:
        return _against(_shorter(calibrator, batch, K, T), *references, len(batch.texts))

    return calibrator.store.get(f"fewer steps {K} {n}", run)


def _references_ahead(calibrator: Calibrator, part: Part) -> None:
    """Where runs are spread, make those that others are held against side by side."""
    calibrator.ahead(_units(calibrator, part))


def _units(calibrator: Calibrator, part: Part) -> dict[str, Callable[[Any], object]]:
    last = "reference" if calibrator.teacher is None else calibrator.teacher.name
    count = range(len(batches_of(calibrator, part)))
    return {f"{part} {last} {n}": partial(_references, part=part, n=n) for n in count}


def uncached_ahead(calibrator: Calibrator) -> None:
    """Where runs are spread, make those that need no other one side by side: the uncached runs of all prompts."""
    fitted = {f"reference {n}": partial(Calibrator.recorded, n=n) for n in range(len(calibrator.batches))}
    calibrator.ahead({**fitted, **_units(calibrator, "chosen"), **_units(calibrator, "judged")})


def _references(calibrator: Calibrator, part: Part, n: int) -> _References:
    batch = batches_of(calibrator, part)[n]
    uncached = calibrator.store.get(f"{part} reference {n}", lambda: _play(calibrator, batch))
    if (teacher := calibrator.teacher) is None:
        return uncached, None

    def run() -> dict[str, Any]:
        clocked = Clocked(teacher.watching())
        images = teacher.run(calibrator, batch, clocked, decode=True)
        return {"images": images, "latents": clocked.latents}

    return uncached, calibrator.store.get(f"{part} {teacher.name} {n}", run)


def _play(calibrator: Calibrator, batch: Prompts, profile: Profile | None = None) -> dict[str, Any]:
    """Images, final latents and seconds of one batch under a profile, or uncached."""
    controller = Controller()
    if profile is not None:
        small = calibrator.small if profile.small_steps else None
        controller = Player(profile, RunStats(), keep_nan=True, small=small)
    clocked = Clocked(controller)
    images = calibrator.run(
        batch,
        clocked,
        UNCACHED if profile is None else "held-out run",
        hidden=profile is not None and profile.site == "hidden",
        decode=True,
        share=1.0 if profile is None else profile.counted_steps / profile.schedule.T,
    )
    return {"images": images, "latents": clocked.latents, "seconds": clocked.seconds}


def _against(
    result: dict[str, Any], reference: dict[str, Any], fine: dict[str, Any] | None, prompts: int
) -> dict[str, list[float]]:
    found = {
        **distances(result, reference, prompts),
        "uncached": [reference["seconds"]],
        "cached": [result["seconds"]],
    }
    if fine is not None:
        found |= {f"teacher_{name}": values for name, values in distances(result, fine, prompts).items()}
    return found


def distances(result: dict[str, Any], reference: dict[str, Any], prompts: int) -> dict[str, list[float]]:
    """`psnr`, `ssim` and `error` of each prompt of a batch, from `images` and `latents`: see `measure`."""
    error = log10_error(result["latents"], reference["latents"], prompts)
    if not error.isfinite().all():
        return {"psnr": [], "ssim": [], "error": error.tolist()}
    metrics = PairedMetrics()
    metrics.update(result["images"], reference["images"])
    return {**metrics.state(), "error": error.tolist()}


def shorter_call(calibrator: Calibrator, K: int) -> dict[str, Any]:
    """The arguments with which the pipeline makes K steps.

    Raises:
        UnsupportedPipeline: the call fixes them, or the pipeline takes no such argument.
    """
    call, brought = calibrator.call, input_names(calibrator.parts.judged.inputs)
    if fixed := [name for name in ("sigmas", "timesteps") if call.get(name) is not None or name in brought]:
        raise UnsupportedPipeline(f"{fixed[0]} in the call fixes the solver's steps")
    if "num_inference_steps" not in defaults_of(calibrator.pipe):
        raise UnsupportedPipeline(f"{type(calibrator.pipe).__name__} takes no num_inference_steps")
    return {**call, "num_inference_steps": K}


def _shorter(calibrator: Calibrator, batch: Prompts, K: int, T: int) -> dict[str, Any]:
    clocked, call = Clocked(), shorter_call(calibrator, K)
    try:
        images = calibrator.run(batch, clocked, "fewer steps", decode=True, share=K / T, call=call)
    except (IndexError, TypeError, ValueError, UnsupportedPipeline) as error:  # what pipelines answer to an argument
        raise UnsupportedPipeline(f"the call with num_inference_steps={K} failed: {error}") from error
    if (made := len(clocked.sigmas) - 1) != K:
        raise UnsupportedPipeline(f"num_inference_steps={K} made {made} steps")
    return {"images": images, "latents": clocked.latents, "seconds": clocked.seconds}
