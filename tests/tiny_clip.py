"""A CLIPModel with random weights, its image processor for 32×32 pixels and the zoo's tokenizer, in a folder."""

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from ertacache_zoo import components

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def saved(folder: Path) -> Path:
    tokenizer = components.clip_tokenizer()
    narrow = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    config = CLIPConfig(
        text_config={**narrow, **special, "pad_token_id": tokenizer.eos_token_id, "vocab_size": len(tokenizer)},
        vision_config={**narrow, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        **{f"do_{part}": True for part in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")},
        "resample": 3,
        "image_mean": MEAN,
        "image_std": STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
