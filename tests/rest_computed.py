"""Runs under a profile that stops predicting half way, and the same by hand: computed from the latent of then on."""

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import ertacache.runtime.apply as ertacache
from ertacache.calibration.calibrate import calibrate
from ertacache.errors import ErtacacheError
from ertacache.pipelines.models import denoisers_of
from ertacache.profile.profile import Profile, Site
from ertacache.runtime.run_stats import RunStats
from pipelines import PROMPTS, VIDEO_CALL, cogvideox
from supported import Small

T, MASK = 10, "##.#..#..#"
PREDICTED = [i for i, kind in enumerate(MASK) if kind == "."]
#: (pipe, step, timestep, tensors) -> tensors to replace.
Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


@dataclass
class Ran:
    """One call of a pipeline: its final latent, those after each step, and the denoiser calls of each step."""

    final: Tensor
    latents: list[Tensor]
    calls: list[int]

    def computed_from(self) -> int:
        """The step after the last one that was predicted."""
        return max((i + 1 for i, made in enumerate(self.calls) if made == 0), default=0)


def video(**call: Any) -> Small:
    """CogVideoX, which reads its guidance weight in every step."""
    return Small(cogvideox(), {**VIDEO_CALL, **call}, tuple(PROMPTS[:3]))


def fitted(small: Small, site: Site, mask: str = MASK, **call: Any) -> Profile:
    """A profile whose coefficients hold at one kind of guidance only."""
    return _calibrated(small, site, mask, {"basis": "fitted", "history": 2, "aim": "step"}, call)


def reused(small: Small, mask: str = MASK, **call: Any) -> Profile:
    """A profile that is right under any guidance."""
    return _calibrated(small, "output", mask, {"basis": "residual"}, call)


def _calibrated(small: Small, site: Site, mask: str, plan: dict[str, Any], call: dict[str, Any]) -> Profile:
    arguments = {**small.call, "num_inference_steps": len(mask), **call}
    facts = {"holdout": 1 / 3, "show_progress": False, "batch_size": small.batch_size}
    return calibrate(small.pipe, small.prompts, schedule=mask, site=site, **plan, **facts, **arguments)


@contextlib.contextmanager
def _counted(pipe: Any) -> Generator[list[int]]:
    count = [0]

    def ran(*_: Any) -> None:
        count[0] += 1

    handles = [denoiser.register_forward_hook(ran) for denoiser in denoisers_of(pipe)]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def generate(
    small: Small,
    change: Callback | None = None,
    *,
    go_on_from: tuple[int, Tensor] | None = None,
    tensors: tuple[str, ...] = (),
    **call: Any,
) -> Ran:
    """One call on the first prompt, or on those of the call.

    Args:
        change: what a person's callback does after each step.
        go_on_from: a step, and the latent with which the run goes on after it.
        tensors: names of what the callback is given besides the latent.
    """
    latents: list[Tensor] = []
    calls: list[int] = []

    def callback(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        calls.append(count[0] - sum(calls))
        given = dict(given)
        if go_on_from is not None and step == go_on_from[0]:
            given["latents"] = go_on_from[1].clone()
        given |= change(pipe, step, t, given) if change is not None else {}
        latents.append(given["latents"].clone())
        return given

    arguments = {"prompt": small.prompts[0], "num_inference_steps": T, **small.call, **call}
    generator = torch.Generator().manual_seed(0)
    more = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents", *tensors]}
    with _counted(small.pipe) as count:
        final = small.pipe(generator=generator, output_type="latent", **more, **arguments)[0]
    return Ran(final, latents, calls)


def go_on_plainly(
    small: Small, profile: Profile, change: Callback | None, caplog: pytest.LogCaptureFixture, **call: Any
) -> tuple[Ran, RunStats]:
    """A run with `on_mismatch="compute"`, whose computed rest is what the plain pipeline makes of the latent of then.

    The cause is logged once, though it comes twice.
    """
    caplog.clear()
    with ertacache.apply(small.pipe, profile, on_mismatch="compute") as stats:
        ran = generate(small, change, **call)
        again = generate(small, change, **call)
    assert torch.equal(ran.final, again.final) and ran.calls == again.calls and stats.runs == 2
    start = ran.computed_from()
    by_hand = generate(small, change, go_on_from=(start - 1, ran.latents[start - 1]) if start else None, **call)
    assert torch.equal(ran.final, by_hand.final)
    said = [str(stats.reason) in record.getMessage() for record in caplog.records]
    assert said == [True] * (stats.reason is not None)
    assert [i for i, made in enumerate(ran.calls) if made == 0] == [i for i in PREDICTED if i < start]
    return ran, stats


def refused(small: Small, profile: Profile, change: Callback | None, **call: Any) -> str:
    """What the same call says without `on_mismatch`; the pipeline is itself again afterwards."""
    plain = generate(small)
    with ertacache.apply(small.pipe, profile), pytest.raises(ErtacacheError) as error:
        generate(small, change, **call)
    assert torch.equal(generate(small).final, plain.final)
    return str(error.value)
