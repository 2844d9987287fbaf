"""The denoiser of Open-Sora 1.2: a diffusion transformer over the space and the time of a video."""

import math
from typing import Any, ClassVar, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from ertacache.opensora.block import FinalLayer, STDiT3Block
from ertacache.opensora.embeddings import CaptionEmbedder, PatchEmbedder, Rope, ScalarEmbedder, position_embedding
from ertacache.opensora.transformer_checks import (
    check_captions,
    check_frame_mask,
    check_latents,
    check_other_keys,
    check_scalar,
    check_sizes,
)


class STDiT3Transformer3DModel(ModelMixin, ConfigMixin, CacheMixin, AttentionMixin):
    """STDiT-v3 of Open-Sora 1.2, for inference; it loads the published weights under their own names.

    Blocks over the tokens of a frame and over the frames of a token run in turn. Of diffusers' calls, attention
    processors and backends can be set, and a cache context; `fuse_qkv_projections` does nothing, as the published
    weights are fused. Diffusers' caches that go by the names of block lists (FirstBlockCache, MagCache) do not know
    these, and gradient checkpointing is not supported.

    Args:
        caption_channels: of the text encoder's tokens.
        depth: pairs of blocks.
        hidden_size: channels of a token.
        num_heads: attention heads.
        in_channels: of the latents.
        input_sq_size: side of the square, in pixels, whose positions have scale 1, and whose images' noise levels are
            not shifted.
        mlp_ratio: hidden channels of a block's MLP for each of its input.
        model_max_length: tokens of a caption at most, and of the null caption.
        patch_size: (1, height, width) of a token, in latents.
        pred_sigma: whether the output has as many channels again after those of the velocity.
        qk_norm: True.
        rounded_frequencies: round the frequencies of positions and frames to bfloat16, as the reference does, whatever
            the dtype of the weights; False leaves them in float32.
        kwargs: other keys of the published configuration, which change nothing in inference.

    Raises:
        InvalidArgument: sizes that do not fit each other, or a key that would change something.
    """

    _no_split_modules: ClassVar = ["STDiT3Block"]
    _repeated_blocks: ClassVar = ["STDiT3Block"]
    #: All but the blocks, which hold 99 % of the weights.
    _skip_layerwise_casting_patterns: ClassVar = ["embedder", "t_block", "final_layer"]

    @register_to_config
    def __init__(
        self,
        caption_channels: int = 4096,
        depth: int = 28,
        hidden_size: int = 1152,
        num_heads: int = 16,
        in_channels: int = 4,
        input_sq_size: int = 512,
        mlp_ratio: float = 4.0,
        model_max_length: int = 300,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        pred_sigma: bool = True,
        qk_norm: bool = True,
        rounded_frequencies: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_other_keys({"qk_norm": qk_norm, **kwargs}, frozenset())
        sizes = {
            "caption_channels": caption_channels, "depth": depth, "in_channels": in_channels,
            "input_sq_size": input_sq_size, "mlp_ratio": mlp_ratio, "model_max_length": model_max_length,
        }  # fmt: skip
        check_sizes(hidden_size, num_heads, patch_size, sizes)
        _make_known()
        self.out_channels = in_channels * 2 if pred_sigma else in_channels
        self.x_embedder = PatchEmbedder(in_channels, hidden_size, patch_size)
        self.t_embedder, self.fps_embedder = ScalarEmbedder(hidden_size), ScalarEmbedder(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.y_embedder = CaptionEmbedder(caption_channels, hidden_size, model_max_length)
        self.spatial_blocks, self.temporal_blocks = (
            nn.ModuleList(STDiT3Block(hidden_size, num_heads, mlp_ratio, temporal=temporal) for _ in range(depth))
            for temporal in (False, True)
        )
        self.final_layer = FinalLayer(hidden_size, math.prod(patch_size) * self.out_channels)
        # Last, as the dtype of the model is that of its first parameter, and this one need not be in a file.
        self.rope = Rope(hidden_size // num_heads)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As diffusers has it, but other keys of the published configuration are not warned of, and others refused.

        Raises:
            InvalidArgument: a key that would change something.
        """
        own = frozenset(cls._get_init_keys(cls)) - {"self", "kwargs"}
        check_other_keys(config_dict, own)
        kept = {name: value for name, value in config_dict.items() if name in own or name.startswith("_")}
        return super().extract_init_dict(kept, **kwargs)

    def null_caption(self, batch_size: int) -> Tensor:
        """The learned caption [batch_size, model_max_length, caption_channels] of the unconditional branch."""
        return self.y_embedder.y_embedding.expand(batch_size, -1, -1)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        fps: Tensor | None = None,
        height: Tensor | None = None,
        width: Tensor | None = None,
        frame_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The velocity data − noise, and after it as many channels of no use in inference.

        Args:
            hidden_states: [B, in_channels, T, H, W] latents, any float dtype; odd sizes are padded.
            timestep: [1] or [B], 0 (data) to 1000 (noise). It is rounded to the dtype of the weights, as the latents.
            encoder_hidden_states: [B, L, caption_channels] captions, L at most `model_max_length`.
            encoder_attention_mask: [B, L] bool or integers of 0 and 1, with a token that counts in each row; None is
                all of them.
            fps: [1] or [B] frames per second; 120 for an image.
            height, width: [1] or [B] size of the video in pixels; that of the first sample counts.
            frame_mask: [B, T] bool, True where a frame is generated, False where it is given, free of noise.
            return_dict: False returns (sample,).

        Returns:
            `sample` [B, out_channels, T, H, W], float32 for weights of up to 32 bits.

        Raises:
            InvalidArgument: an argument is missing, does not fit the others, or is not positive.
        """
        self._check(hidden_states, encoder_hidden_states, encoder_attention_mask, frame_mask)
        batch, _, frames, *size = hidden_states.shape
        check_scalar("timestep", timestep, batch, "the time from 0 to 1000", zero=True)
        for name, value, what in (
            ("fps", fps, "frames per second"), ("height", height, "pixels"), ("width", width, "pixels")
        ):  # fmt: skip
            check_scalar(name, value, batch, what)

        dtype, device = self.dtype, hidden_states.device
        x = self.x_embedder(self._padded(hidden_states.to(dtype)))
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2, 3) + self._places(cast(Tensor, height), cast(Tensor, width), grid, x)
        mask = None if frame_mask is None else frame_mask.to(device)
        temb, fixed, modulation = self._times(timestep.to(device).expand(batch), cast(Tensor, fps), mask, dtype)
        captions = self.y_embedder(encoder_hidden_states.to(device, dtype))
        seen = None if encoder_attention_mask is None else encoder_attention_mask.to(device).bool()[:, None, None]
        rotation = self.rope(frames, rounded=self._own.rounded_frequencies, device=device, dtype=_wide(dtype))
        x = x.flatten(1, 2)
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            x = spatial(x, captions, modulation, frames, seen)
            x = temporal(x, captions, modulation, frames, seen, rotation)
        sample = self._unpatched(self.final_layer(x, temb, frames, mask, fixed), grid, size).to(_wide(dtype))
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    @property
    def _own(self) -> Any:
        return self.config

    def _check(self, latents: Tensor, captions: Tensor, caption_mask: Tensor | None, frame_mask: Tensor | None) -> None:
        check_latents(latents, self._own.in_channels)
        batch, _, frames = latents.shape[:3]
        check_captions(captions, caption_mask, batch, self._own.caption_channels, self._own.model_max_length)
        check_frame_mask(frame_mask, batch, frames)

    def _padded(self, x: Tensor) -> Tensor:
        _, high, wide = self._own.patch_size
        return functional.pad(x, (0, -x.shape[-1] % wide, 0, -x.shape[-2] % high))

    def _places(self, height: Tensor, width: Tensor, grid: tuple[int, int], like: Tensor) -> Tensor:
        """The position embedding [S, C] in the dtype of `like`."""
        high, wide = (side[0].to(like.device, _wide(like.dtype)) for side in (height, width))
        own = self._own
        places = position_embedding(
            high, wide, grid, own.hidden_size, own.input_sq_size, rounded=own.rounded_frequencies
        )
        return places.to(like.dtype)

    def _times(
        self, timestep: Tensor, fps: Tensor, frame_mask: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The embedded time [B, C], that of fixed frames if there are any, and the modulation [B, 1 or T, 6, C]."""
        wide = _wide(dtype)
        rate = self.fps_embedder(fps.to(timestep.device, wide).expand(len(timestep)), dtype)
        temb = self.t_embedder(timestep.to(dtype).to(wide), dtype) + rate
        modulation = self._modulation(temb)
        if frame_mask is None:
            return temb, None, modulation
        fixed = self.t_embedder(torch.zeros_like(timestep, dtype=wide), dtype) + rate
        return temb, fixed, torch.where(frame_mask[:, :, None, None], modulation, self._modulation(fixed))

    def _modulation(self, temb: Tensor) -> Tensor:
        return self.t_block(temb).unflatten(-1, (1, 6, -1))

    def _unpatched(self, patches: Tensor, grid: tuple[int, int], size: list[int]) -> Tensor:
        """[B, T, S, patch · out_channels] to [B, out_channels, T, H, W], without the padding."""
        _, high, wide = self._own.patch_size
        pixels = patches.unflatten(-1, (high, wide, self.out_channels)).unflatten(2, grid)
        video = pixels.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
        return video[..., : size[0], : size[1]]


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What positions and angles are computed in: float32, or float64 for such weights."""
    return torch.promote_types(dtype, torch.float32)


def _make_known() -> None:
    """Tell diffusers where a block takes and returns its tokens, as it knows it of its own blocks."""
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    TransformerBlockRegistry.register(STDiT3Block, TransformerBlockMetadata(return_hidden_states_index=0))
