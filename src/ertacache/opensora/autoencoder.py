"""The autoencoder of Open-Sora 1.2: one of images for every frame, and a causal one over time on its latents."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Generator, Tensor, nn

from ertacache.opensora import autoencoder_checks as checks
from ertacache.opensora.posterior import TwoStagePosterior
from ertacache.opensora.temporal_autoencoder import TemporalAutoencoder, TemporalSizes


class AutoencoderKLOpenSora(ModelMixin, AutoencoderMixin, ConfigMixin):
    """Clips to latents and back; parameters are named as in the published weights (Open-Sora 1.2).

    A clip is cut into chunks of `micro_frame_size` frames, which know nothing of each other: the seam every 17 frames
    is a property of the published model. Memory is that of one chunk, besides what goes in and what comes out; within
    a chunk, `micro_batch_size` frames at a time go through the spatial half. `enable_slicing` takes one sample at a
    time through the temporal half too, to the same bits; `enable_tiling` cuts frames larger than `sample_size` into
    overlapping tiles, as `AutoencoderKL` does, whose seams may show.

    Latents are in model space: those of the temporal half minus `latents_mean`, divided by `latents_std`. Both are
    buffers, `shift` and `scale`, and a checkpoint's win over the configuration.

    Args:
        latent_channels: of both halves.
        block_out_channels: of the spatial half; each level but the first halves height and width.
        layers_per_block: residual blocks of a level of the spatial half.
        norm_num_groups: of the spatial half.
        sample_size: side in pixels of a tile.
        spatial_scaling_factor: by which the latents of the spatial half are multiplied before they go on. That of the
            SDXL autoencoder's own configuration is another one, which Open-Sora does not use.
        temporal_filters, temporal_multipliers: channels of a level of the temporal half are their product.
        temporal_res_blocks: residual blocks of a level of the temporal half.
        temporal_norm_num_groups: of the temporal half.
        time_downsample: for each level of the temporal half but the last, whether it halves the number of frames.
        micro_frame_size: frames of a chunk.
        micro_batch_size: frames that go through the spatial half at once.
        latents_mean, latents_std: one value per latent channel.

    Raises:
        InvalidArgument: values that do not fit each other.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules: ClassVar[list[str]] = ["CausalResBlock", "ResnetBlock2D", "Attention"]

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        sample_size: int = 512,
        spatial_scaling_factor: float = 0.18215,
        temporal_filters: int = 128,
        temporal_multipliers: Sequence[int] = (1, 2, 2, 4),
        temporal_res_blocks: int = 4,
        temporal_norm_num_groups: int = 32,
        time_downsample: Sequence[bool] = (False, True, True),
        micro_frame_size: int = 17,
        micro_batch_size: int = 4,
        latents_mean: Sequence[float] = (-0.10, 0.34, 0.27, 0.98),
        latents_std: Sequence[float] = (3.85, 2.32, 2.33, 3.06),
    ) -> None:
        super().__init__()
        checks.check_config(self.config)
        levels = len(block_out_channels)
        build: Any = AutoencoderKL  # its annotations allow for one block only
        self.spatial_vae = nn.Module()
        self.spatial_vae.module = build(
            block_out_channels=tuple(block_out_channels),
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            scaling_factor=spatial_scaling_factor,
        )
        self.temporal_vae = TemporalAutoencoder(
            TemporalSizes(
                latent_channels,
                tuple(temporal_filters * multiplier for multiplier in temporal_multipliers),
                temporal_res_blocks,
                temporal_norm_num_groups,
                tuple(time_downsample),
            )
        )
        self.register_buffer("scale", torch.tensor([float(v) for v in latents_std]).view(1, -1, 1, 1, 1))
        self.register_buffer("shift", torch.tensor([float(v) for v in latents_mean]).view(1, -1, 1, 1, 1))
        self.use_slicing = False

    @property
    def use_tiling(self) -> bool:
        """Whether large frames go through the spatial half in tiles."""
        return self._spatial.use_tiling

    @use_tiling.setter
    def use_tiling(self, value: bool) -> None:
        self._spatial.use_tiling = value

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels to one latent along height and along width; what is left over at the edge is dropped."""
        return 2 ** (len(self.config["block_out_channels"]) - 1)

    @property
    def temporal_compression_ratio(self) -> int:
        """Frames to one latent frame, within a chunk."""
        return self.temporal_vae.compression

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip of `num_frames`: each chunk is rounded up for itself.

        Raises:
            InvalidArgument: fewer frames than one.
        """
        whole, rest = divmod(checks.frame_count(num_frames), self.config["micro_frame_size"])
        return whole * self._chunk_latents + -(-rest // self.temporal_compression_ratio)

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[TwoStagePosterior]:
        """What is known of the latents of clips.

        Args:
            x: [B, 3, frames, height, width] in [-1, 1], of the model's dtype.
            return_dict: False: a tuple.

        Returns:
            `latent_dist`, whose `sample(generator)` draws through both halves as the reference does and whose `mode()`
            takes the means of both: [B, latent_channels, latent_frames(frames), height // 8, width // 8] in model
            space; // 8 is that of the published model, see `spatial_compression_ratio`.

        Raises:
            InvalidArgument: another number of dimensions or channels, no frame, less than one latent of height or
                width, or whole numbers.
        """
        checks.check_clip(x, self.spatial_compression_ratio)
        pieces = (
            self._framewise(self._spatial_moments, chunk) for chunk in x.split(self.config["micro_frame_size"], 2)
        )
        spatial = DiagonalGaussianDistribution(_filled(pieces, x.shape[2], 2))
        posterior = TwoStagePosterior(spatial, self._temporal_latents)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)  # pyright: ignore[reportArgumentType]

    @apply_forward_hook
    def decode(
        self, z: Tensor, num_frames: int | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Clips from latents.

        Args:
            z: [B, latent_channels, latent_frames(num_frames), h, w] in model space, of the model's dtype.
            num_frames: frames of the clips; several numbers have equally many latents, so it has to be given.
            return_dict: False: a tuple.

        Returns:
            `sample`, [B, 3, num_frames, 8 h, 8 w], about in [-1, 1]; 8 is that of the published model.

        Raises:
            InvalidArgument: another number of dimensions or channels, `num_frames` missing or not that of the latents,
                or whole numbers.
        """
        checks.check_latents(z, self.config["latent_channels"])
        if num_frames is None or self.latent_frames(num_frames) != z.shape[2]:
            raise checks.wrong_frames(num_frames, z.shape[2], self._frame_range(z.shape[2]))
        size = self.config["micro_frame_size"]
        pieces = (
            self._framewise(self._spatial_pixels, self._temporal_frames(chunk, min(size, num_frames - n * size)))
            for n, chunk in enumerate(z.split(self._chunk_latents, 2))
        )
        sample = _filled(pieces, num_frames, 2)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Clips [B, 3, frames, height, width] in [-1, 1] encoded, by the mode or drawn, and decoded again."""
        (posterior,) = self.encode(sample, return_dict=False)
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, sample.shape[2], return_dict)

    @property
    def _spatial(self) -> Any:
        return self.spatial_vae.module

    @property
    def _chunk_latents(self) -> int:
        return -(-self.config["micro_frame_size"] // self.temporal_compression_ratio)

    def _frame_range(self, latents: int) -> tuple[int, int]:
        """Least and most frames that have so many latent frames."""
        whole, rest = divmod(latents - 1, self._chunk_latents)
        before, chunk = whole * self.config["micro_frame_size"], self.config["micro_frame_size"]
        ratio = self.temporal_compression_ratio
        return before + rest * ratio + 1, before + min((rest + 1) * ratio, chunk)

    def _sliced(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`call` on the whole batch `x` [B, C, frames, h, w], or on one sample at a time."""
        return _filled(map(call, x.split(1 if self.use_slicing else len(x))), len(x), 0)

    def _framewise(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`call` on frames [n, C, H, W] of `x` [B, C, frames, H, W], never of two samples at once."""
        size = self.config["micro_batch_size"]
        samples = (
            _filled((call(part) for part in frames.split(size)), len(frames), 0).transpose(0, 1)[None]
            for frames in x.transpose(1, 2)
        )
        return _filled(samples, len(x), 0)

    def _spatial_moments(self, frames: Tensor) -> Tensor:
        return self._spatial.encode(frames).latent_dist.parameters

    def _spatial_pixels(self, frames: Tensor) -> Tensor:
        return self._spatial.decode(frames / self.config["spatial_scaling_factor"]).sample

    # It runs when a posterior is read, by when a model that was offloaded may have left the device again.
    @apply_forward_hook
    def _temporal_latents(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation in model space of latents of frames, [B, C, frames, h, w] as the encoder's."""
        factor, size = self.config["spatial_scaling_factor"], self.config["micro_frame_size"]
        pieces = (self._sliced(self.temporal_vae.encode, chunk * factor) for chunk in frames.split(size, 2))
        temporal = DiagonalGaussianDistribution(_filled(pieces, self.latent_frames(frames.shape[2]), 2))
        return (temporal.mean - self.shift) / self.scale, temporal.std / self.scale

    def _temporal_frames(self, z: Tensor, frames: int) -> Tensor:
        """The spatial half's latents [B, C, frames, h, w] of one chunk of latents in model space."""
        return self._sliced(lambda part: self.temporal_vae.decode(part, frames), z * self.scale + self.shift)


def _filled(pieces: Iterable[Tensor], size: int, dim: int) -> Tensor:
    """Pieces one after another along `dim`, `size` long in all.

    Written in place as they come: joined in the end, a long clip would be held twice.
    """
    whole, start = torch.empty(0), 0
    for piece in pieces:
        length = piece.shape[dim]
        if length == size:
            return piece
        if not start:
            whole = piece.new_empty(*piece.shape[:dim], size, *piece.shape[dim + 1 :])
        whole.narrow(dim, start, length).copy_(piece)
        start += length
        del piece  # or it would be held while the next one is made
    return whole
