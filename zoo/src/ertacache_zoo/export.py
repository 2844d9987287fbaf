"""A trained pipeline as a folder: diffusers' own files, and beside them how to call it and how it was trained."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load, save_file


def write_model(
    pipe: Any, out: Path, call: dict[str, Any], readme: str, facts: dict[str, Any], run: Path, stages: list[str]
) -> Path:
    """Write the folder `out`, with call.json, README.md, training.json and the logs of `stages` from `run`.

    The weights are stored in half precision; those of `pipe` stay as they are.
    """
    out.mkdir(parents=True, exist_ok=True)
    pipe.save_pretrained(out)
    for config in out.rglob("config.json"):
        _without_origin(config)
    in_half_precision(out)
    (out / "call.json").write_text(json.dumps(call, indent=2) + "\n")
    (out / "README.md").write_text(readme)
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    for stage in stages:
        shutil.copyfile(run / f"{stage}.jsonl", out / f"training-{stage}.jsonl")
    return out


def _without_origin(config: Path) -> None:
    """Drop the folder that a component was once loaded from: it says nothing elsewhere."""
    fields = json.loads(config.read_text())
    if fields.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(fields, indent=2) + "\n")


def in_half_precision(folder: Path) -> None:
    """Store all weights under `folder` as float16.

    Configurations keep the type of training: transformers loads as the type that they name, and diffusers as float32,
    so that a folder loads in one type whether or not one is asked for.

    Raises:
        ValueError: a weight is too large for float16; its file is left as it was.
    """
    for path in folder.rglob("*.safetensors"):
        stored = load(path.read_bytes())
        halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
        for name, tensor in halves.items():
            if not tensor.isfinite().all():
                raise ValueError(f"{name} of {path} holds values that float16 cannot; store its model otherwise")
        save_file(halves, path, {"format": "pt"})
