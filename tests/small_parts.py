"""Text encoders, autoencoders and tokenizers with small random weights, made in code."""

from typing import Any

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel, UniPCMultistepScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from ertacache_zoo import components, scenes
from pipelines import PROMPTS
from supported import T

#: Width of every text encoder.
WIDTH = 32
#: Longest text in tokens, for encoders that pad to it.
LENGTH = components.MAX_SEQUENCE_LENGTH
THREE_PROMPTS = tuple(PROMPTS[:3])

SIZE = {"height": 32, "width": 32}
GUIDED: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": 4.0, "negative_prompt": ""}
LENGTH_CALL: dict[str, Any] = {"num_inference_steps": T, "max_sequence_length": LENGTH}
#: Of the variance-preserving models.
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
#: A note for the table: what is predicted at site `output` has the other sign than what the solver receives.
NEGATES = "the pipeline negates the output"

seeded, clip_tokenizer, t5_tokenizer = components.seeded, components.clip_tokenizer, components.t5_tokenizer

_CHAT = (
    "{% for message in messages %}{{ message['role'] }} {% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %} {% endfor %}"
)
DECODER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
_T5: dict[str, Any] = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}


def words_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, with a chat template; for the encoders that are language models."""
    vocab = {word: index for index, word in enumerate(["<pad>", "<unk>", "<s>", *scenes.words()])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<s>", bos_token="<s>",
        chat_template=_CHAT, model_max_length=LENGTH,
    )  # fmt: skip


def decoder(model: type, config: type, tokenizer: Any, seed: int, **more: Any) -> Any:
    """A language model of a class that has the usual arguments."""
    return seeded(lambda: model(config(**{**DECODER, "vocab_size": len(tokenizer), **more})).eval(), seed=seed)


def t5(tokenizer: Any, seed: int) -> T5EncoderModel:
    return seeded(lambda: T5EncoderModel(T5Config(vocab_size=len(tokenizer), **_T5)).eval(), seed=seed)


def umt5(tokenizer: Any, seed: int) -> UMT5EncoderModel:
    return seeded(lambda: UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **_T5)).eval(), seed=seed)


def clip(tokenizer: Any, seed: int, projection: int | None = None, width: int = WIDTH) -> Any:
    """CLIP's text model; with a projection where the width of one is given."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=WIDTH, projection_dim=projection or WIDTH,
        num_hidden_layers=2, num_attention_heads=2, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = CLIPTextModel if projection is None else CLIPTextModelWithProjection
    return seeded(lambda: model(config).eval(), seed=seed)


def autoencoder(seed: int, scales: int = 1, channels: int = 4, **more: Any) -> AutoencoderKL:
    """An AutoencoderKL that halves the sides `scales` times."""
    build: Any = AutoencoderKL  # its annotations allow for one block only
    blocks = scales + 1
    config: dict[str, Any] = {
        "block_out_channels": (8,) * blocks,
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "latent_channels": channels,
        "norm_num_groups": 2,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "mid_block_add_attention": False,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        **more,
    }
    return seeded(lambda: build(**config), seed=seed)


def unet(seed: int, **more: Any) -> UNet2DConditionModel:
    """Two scales, cross-attention at the lower one; made for latents of 4 channels."""
    build: Any = UNet2DConditionModel
    config: dict[str, Any] = {
        "sample_size": 16, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8, **more,
    }  # fmt: skip
    return seeded(lambda: build(**config), seed=seed)


def euler(**config: Any) -> Any:
    return FlowMatchEulerDiscreteScheduler(**config)


def unipc(shift: float = 3.0) -> Any:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def assembled(pipeline: Any, **parts: Any) -> Any:
    """A pipeline of these parts."""
    pipe = pipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe
