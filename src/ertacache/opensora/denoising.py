"""The steps of a call: one pass of the transformer each, guided, and one of the scheduler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ertacache.opensora.frame_conditioning import FrameConditioning


@dataclass
class Denoising:
    """What a run holds; a callback may change all of it but `told`.

    Attributes:
        latents: [B, 4, T, h, w] float32.
        prompt_embeds, prompt_attention_mask: as the transformer is given them, with the unconditional half first where
            there is one.
        told: the transformer's arguments that stay: fps, height, width.
        conditioning: of the frames that are given.
    """

    latents: Tensor
    prompt_embeds: Tensor
    prompt_attention_mask: Tensor
    told: dict[str, Tensor]
    conditioning: FrameConditioning | None = None

    def run(self, pipe: Any, callback: Callable[..., dict[str, Any]] | None, names: Sequence[str]) -> Tensor:
        """The clean latents.

        Args:
            pipe: the pipeline, whose scheduler has its timesteps.
            callback: called after each step with the tensors of these `names`.
        """
        timesteps = pipe.scheduler.timesteps
        levels = [time / 1000 for time in timesteps.tolist()] if self.conditioning is not None else []
        with pipe.progress_bar(total=len(timesteps)) as progress:
            for i, t in enumerate(timesteps):
                if pipe.interrupt:
                    continue
                pipe._current_timestep = t
                if self.conditioning is not None:
                    self.latents = self.conditioning.begin(self.latents, levels[i])
                # v points from noise to data here, and the other way in diffusers: only the sign differs.
                v = self._velocity(pipe, t)
                self.latents = pipe.scheduler.step(-v, t, self.latents, return_dict=False)[0]
                if self.conditioning is not None:
                    self.latents = self.conditioning.end(self.latents)
                if callback is not None:
                    changed = callback(pipe, i, t, {name: getattr(self, name) for name in names})
                    for name in names:
                        setattr(self, name, changed.pop(name, getattr(self, name)))
                progress.update()
        pipe._current_timestep = None
        return self.latents

    def _velocity(self, pipe: Any, t: Tensor) -> Tensor:
        """Guided velocity [B, 4, T, h, w] in float32: the leading channels of the output, beside a variance."""
        branches = 2 if pipe.do_classifier_free_guidance else 1
        batch, dtype = branches * len(self.latents), pipe.transformer.dtype
        with pipe.transformer.cache_context("cond_uncond"):
            output = pipe.transformer(
                hidden_states=torch.cat([self.latents] * branches).to(dtype),
                timestep=t.expand(batch).to(dtype),
                encoder_hidden_states=self.prompt_embeds,
                encoder_attention_mask=self.prompt_attention_mask,
                frame_mask=None if self.conditioning is None else self.conditioning.mask(batch),
                return_dict=False,
                **self.told,
            )[0]
        v = output[:, : self.latents.shape[1]].float()
        if branches == 1:
            return v
        uncond, cond = v.chunk(2)
        return uncond + pipe.guidance_scale * (cond - uncond)
