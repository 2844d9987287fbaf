"""The untrained parts of a small FLUX: the real diffusers and transformers classes, only narrower."""

from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from ertacache_zoo import scenes

#: T5 tokens of a caption, in training and in every call (the longest caption has 23, end mark included).
MAX_SEQUENCE_LENGTH = 24
LATENT_CHANNELS = 4


def autoencoder() -> AutoencoderKL:
    """64×64 pixels to 16×16 latents of four channels."""
    build: Any = AutoencoderKL  # its annotations allow for one block only
    return build(
        block_out_channels=(24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=scenes.IMAGE_SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def transformer(guidance_embeds: bool) -> FluxTransformer2DModel:
    """2 double and 4 single blocks, 2.3M parameters, 64 latent tokens for a 64×64 image."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=96,
        pooled_projection_dim=64,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 14, 14),
    )


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Dynamic shifting scaled so that 64 tokens get the shift that FLUX.1-dev gives to 1024×1024 pixels."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=4, max_image_seq_len=64
    )


def t5_tokenizer(words: list[str] | None = None) -> T5Tokenizer:
    """One token a word; of the still scenes by default."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    vocab += [(f"▁{word}", -2.0) for word in (scenes.words() if words is None else words)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=MAX_SEQUENCE_LENGTH)


def clip_tokenizer() -> CLIPTokenizer:
    """One token a word: the merges build every word of the captions from its letters, left to right."""
    pieces: dict[str, None] = {}
    merges: dict[tuple[str, str], None] = {}
    for word in scenes.words():
        letters = [*word[:-1], f"{word[-1]}</w>"]
        joined = letters[0]
        for letter in letters[1:]:
            merges[joined, letter] = None
            pieces.update({joined: None, letter: None, joined + letter: None})
            joined += letter
        pieces[joined] = None
    vocab = {piece: index for index, piece in enumerate(["<|startoftext|>", "<|endoftext|>", "!", *pieces])}
    pairs: Any = list(merges)
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=77)


def t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=96,
            d_kv=24,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
        )
    )


def clip_encoder(tokenizer: Any) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            projection_dim=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


def seeded(build: Any, *args: Any, seed: int) -> Any:
    """Build a module with weights that depend on `seed` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(*args)


def tokenize(texts: list[str], t5_tokenizer: Any, clip_tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of texts, [N, 24] for T5 and [N, 77] for CLIP, as FluxPipeline makes them."""
    options: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    t5_ids = t5_tokenizer(texts, max_length=MAX_SEQUENCE_LENGTH, **options).input_ids
    return t5_ids, clip_tokenizer(texts, max_length=77, **options).input_ids
