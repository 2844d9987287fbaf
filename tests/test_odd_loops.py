"""Denoising loops that break an assumption: tokens dropped on the way, a second scheduler beside the first."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import ertacache.runtime.apply as ertacache
from dummies import LinearDenoiser
from dummy_pipeline import DummyPipeline, LinearModule, untimed
from ertacache.calibration.calibrate import calibrate
from ertacache.errors import UnsupportedPipeline
from ertacache.profile.profile import Site
from pipelines import PROMPTS
from supported import MASK, SITES, T


class Dropping(DummyPipeline):
    """A pipeline over tokens [B, 6, 3] that is left with half of them from step `drop_at` on.

    Attributes:
        padded: only the denoiser drops them, and the pipeline fills up with zeros.
    """

    drop_at, padded = T, False

    def __call__(
        self, prompt: Sequence[str], num_inference_steps: int = T, generator: Sequence[torch.Generator] = (),
        output_type: str = "latent",
    ) -> tuple[Tensor]:  # fmt: skip
        x = torch.cat([torch.randn(1, 6, 3, generator=g, dtype=torch.float64) for g in generator])
        self.scheduler.set_timesteps(num_inference_steps)
        for i, t in enumerate(self.scheduler.timesteps):
            drops = i >= self.drop_at
            x = x[:, :3] if drops and not self.padded else x
            self.transformer.drops = drops and self.padded
            with self.transformer.cache_context("cond"):
                output = self.transformer(hidden_states=x, timestep=t.expand(len(x)), return_dict=False)[0]
            output = torch.cat([output, torch.zeros_like(x[:, output.shape[1] :])], 1)
            x = self.scheduler.step(output, t, x, return_dict=False)[0]
        return (x if output_type == "latent" else torch.zeros(len(x), 3, 12, 12),)


class DroppingModule(LinearModule):
    drops = False

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        (output,) = super().forward(hidden_states, timestep)
        return (output[:, :3] if self.drops else output,)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(
    ("padded", "what"), [(False, "the latent of call 'cond'"), (True, "the output of call 'cond'")]
)
def test_dropped_tokens_are_refused(padded: bool, what: str, site: Site):
    A = -torch.eye(3, dtype=torch.float64) + 0.1
    pipe = Dropping(DroppingModule(LinearDenoiser(A, torch.ones(3, dtype=torch.float64))), (6, 3), branches=False)
    pipe.padded = padded
    options: dict[str, Any] = {"schedule": MASK, "site": site, "holdout": 0.5, "show_progress": False}
    profile = calibrate(pipe, PROMPTS[:2], num_inference_steps=T, **options)

    def run() -> Tensor:
        return pipe(PROMPTS[:1], generator=[torch.Generator().manual_seed(0)])[0]

    pipe.drop_at = 6
    plain = run()
    message = rf"{what} has shape \[1, 3, 3\] at step 6 and had \[1, 6, 3\] before; .* take off what drops tokens"
    with ertacache.apply(pipe, profile), pytest.raises(UnsupportedPipeline, match=message):
        run()
    assert torch.equal(run(), plain)
    pipe.drop_at = 4  # a predicted step: nothing of what the denoiser would return is seen there
    with ertacache.apply(pipe, profile), pytest.raises(UnsupportedPipeline, match="take off what drops tokens"):
        run()
    with pytest.raises(UnsupportedPipeline, match="nothing can be predicted where the shape changes within a run"):
        calibrate(pipe, PROMPTS[:2], num_inference_steps=T, **options)
    assert torch.equal(run(), run())


class TwoStreams(DummyPipeline):
    """A second latent is integrated beside the first by a copy of the scheduler, after it or before it in each step."""

    before, checked = False, True

    def __call__(
        self, prompt: Sequence[str], num_inference_steps: int = T, generator: Sequence[torch.Generator] = (),
        output_type: str = "latent",
    ) -> tuple[Tensor]:  # fmt: skip
        x = torch.cat([torch.randn(1, 3, generator=g, dtype=torch.float64) for g in generator])
        second, copied = x.flip(1), copy.deepcopy(self.scheduler)
        for scheduler in (copied, self.scheduler):
            scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            output = self.transformer(hidden_states=x, timestep=t.expand(len(x)), return_dict=False)[0]
            if self.before:
                second = copied.step(output.flip(1), t, second, return_dict=False)[0]
            x = self.scheduler.step(output, t, x, return_dict=False)[0]
            if not self.before:
                second = copied.step(output.flip(1), t, second, return_dict=False)[0]
        if self.checked:
            torch.testing.assert_close(second, x.flip(1))
        return (x if output_type == "latent" else torch.zeros(len(x), 3, 12, 12),)


def test_a_copy_of_the_scheduler_may_step_on_what_the_denoiser_returned_unless_that_is_nothing():
    A = -torch.eye(3, dtype=torch.float64) + 0.1
    pipe = TwoStreams(LinearModule(LinearDenoiser(A, torch.ones(3, dtype=torch.float64))), (3,), branches=False)
    options: dict[str, Any] = {"schedule": MASK, "holdout": 0.5, "show_progress": False, "num_inference_steps": T}
    pipe.checked = False
    with pytest.raises(UnsupportedPipeline, match=r"a copy of the scheduler steps on .*; calibrate with site='output'"):
        calibrate(pipe, PROMPTS[:2], **options)  # at site guided: the second latent would be integrated over nothing
    pipe.checked = True
    options |= {"basis": "residual", "site": "output"}
    profile = calibrate(pipe, PROMPTS[:2], **options)
    with ertacache.apply(pipe, profile) as stats:
        for _ in range(2):
            pipe(PROMPTS[:1], generator=[torch.Generator().manual_seed(0)])
        assert (stats.computed, stats.predicted) == ({"call0": 5}, {"call0": 3})
    pipe.before = True  # whichever of the two steps first
    assert untimed(calibrate(pipe, PROMPTS[:2], **options)) == untimed(profile)
