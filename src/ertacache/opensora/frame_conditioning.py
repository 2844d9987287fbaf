"""Frames that are given: an image to begin with, or a clip to go on from."""

from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ertacache.errors import InvalidArgument

Generators = torch.Generator | Sequence[torch.Generator] | None


class FrameConditioning:
    """The given frames of a batch of clips, and when they join in.

    A frame with strength s is left alone while the noise level is above s; below it is noised to that level and
    denoised with the others. With strength 0 it stays as it is.

    Args:
        given: [B, C, n, h, w] clean latents of the first n frames.
        latents: [B, C, T, h, w] noise.
        strength: of the given frames, from 0 to below 1.
        generator: for the noise of those that join in.

    Source: Open-Sora 1.2's masks (there: edit ratio).
    """

    def __init__(self, given: Tensor, latents: Tensor, strength: float, generator: Generators) -> None:
        frames = latents.shape[2]
        self._given = torch.arange(frames, device=latents.device) < given.shape[2]
        self._strength, self._generator = strength, generator
        self._joined = False
        self._before = latents
        self.latents = torch.cat([given, latents[:, :, given.shape[2] :]], 2)

    def begin(self, latents: Tensor, level: float) -> Tensor:
        """The latents of a step, with what joins in at this noise level (0 to 1) noised."""
        joins = not self._joined and self._strength > 0 and self._strength >= level
        if joins:
            noise = randn_tensor(latents.shape, self._generator, latents.device, latents.dtype)  # pyright: ignore[reportArgumentType]
            noised = (1 - level) * latents + level * noise
            latents = torch.where(self._given[:, None, None], noised, latents)
            self._joined = True
        self._before = latents
        return latents

    def mask(self, batch: int) -> Tensor:
        """[batch, T], True where a frame is generated."""
        return (~self._given | self._joined).expand(batch, -1)

    def end(self, latents: Tensor) -> Tensor:
        """The latents after a step, with the frames that do not take part as they were before it."""
        return latents if self._joined else torch.where(self._given[:, None, None], self._before, latents)


def check_given(given: int, num_frames: int, chunk: int = 17, shared: int = 4) -> None:
    """Refuse given frames that the autoencoder would group otherwise than those of the whole clip.

    Args:
        chunk: frames that it takes together.
        shared: frames to a latent frame; of what is left over to a chunk, each so many from the end.

    Raises:
        InvalidArgument: naming the next shorter length that can be given, and the next longer clip.
    """
    if given >= num_frames:
        raise InvalidArgument(
            f"{given} frame(s) are given and num_frames is {num_frames}; leave some to be generated: give fewer, or "
            "raise num_frames"
        )

    def fits(given: int, num_frames: int) -> bool:
        rest = given % chunk
        length = min(chunk, num_frames - (given - rest))
        return rest == 0 or rest % shared == length % shared

    if not fits(given, num_frames):
        shorter = (f"give {n}" for n in range(given, 0, -1) if fits(n, num_frames))
        longer = (f"num_frames={n}" for n in range(num_frames, num_frames + chunk) if fits(given, n))
        remedies = [remedy for remedy in (next(shorter, None), next(longer, None)) if remedy is not None]
        raise InvalidArgument(
            f"{given} frame(s) are given, which end within a latent frame of a clip of {num_frames}; "
            f"{' or choose '.join(remedies)}"
        )
