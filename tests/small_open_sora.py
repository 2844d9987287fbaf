"""Open-Sora around small random weights, and the folders in which its parts are published."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file

import small_parts as parts
from ertacache.opensora import AutoencoderKLOpenSora, OpenSoraPipeline, STDiT3Transformer3DModel
from small_parts import LENGTH, NEGATES, THREE_PROMPTS, WIDTH, assembled, seeded
from supported import Small, T

#: 4 × 5 latents, so that the transformer pads to whole patches, of 5 frames.
CALL: dict[str, Any] = {"num_inference_steps": T, "height": 32, "width": 43, "num_frames": 17, "guidance_scale": 4.0}

TRANSFORMER: dict[str, Any] = {
    "caption_channels": WIDTH, "depth": 2, "hidden_size": 48, "num_heads": 2, "model_max_length": LENGTH,
}  # fmt: skip
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "temporal_filters": 8,
    "temporal_res_blocks": 1, "temporal_norm_num_groups": 4,
}  # fmt: skip


def transformer(seed: int = 2, **more: Any) -> STDiT3Transformer3DModel:
    """Its gates are no zeros, and its output is large enough to bend a trajectory."""
    model = seeded(lambda: STDiT3Transformer3DModel(**{**TRANSFORMER, **more}).eval(), seed=seed)
    with torch.no_grad():
        model.final_layer.linear.weight.mul_(4)
    return model


def autoencoder(seed: int = 1) -> AutoencoderKLOpenSora:
    return seeded(lambda: AutoencoderKLOpenSora(**AUTOENCODER).eval(), seed=seed)


def open_sora(**changed: Any) -> Any:
    tokenizer = parts.t5_tokenizer()
    made = {
        "tokenizer": tokenizer,
        "text_encoder": parts.t5(tokenizer, 0),
        "vae": autoencoder(),
        "transformer": transformer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }
    return assembled(OpenSoraPipeline, **{**made, **changed})


def small() -> Small:
    return Small(open_sora(), CALL, THREE_PROMPTS, notes=(NEGATES,))


def published(folder: Path, pipe: Any, *, binary: bool = False) -> dict[str, str]:
    """Write the parts of a pipeline as they are published; the arguments of `from_published`."""
    config = {
        "model_type": "STDiT3", "architectures": ["STDiT3"], "class_dropout_prob": 0.1, "drop_path": 0.0,
        "enable_flash_attn": True, "enable_layernorm_kernel": True, "enable_sequence_parallelism": False,
        "freeze_y_embedder": True, "input_size": [None, None, None], "input_sq_size": 512, "in_channels": 4,
        "mlp_ratio": 4.0, "only_train_temporal": False, "patch_size": [1, 2, 2], "pred_sigma": True, "qk_norm": True,
        "skip_y_embedder": False, "torch_dtype": "float32", "transformers_version": "4.36.2", **TRANSFORMER,
    }  # fmt: skip
    _write(folder / "transformer", config, pipe.transformer.state_dict(), binary)
    config = {"model_type": "VideoAutoencoderPipeline", "freeze_vae_2d": False, "micro_frame_size": 17, **AUTOENCODER}
    _write(folder / "vae", config, pipe.vae.state_dict(), binary)
    pipe.text_encoder.save_pretrained(folder / "t5")
    pipe.tokenizer.save_pretrained(folder / "t5")
    return {
        name: str(folder / sub)
        for name, sub in (("transformer", "transformer"), ("vae", "vae"), ("text_encoder", "t5"))
    }


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], binary: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    own = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    if binary:
        torch.save(own, folder / "pytorch_model.bin")
    else:
        save_file(own, folder / "model.safetensors")
