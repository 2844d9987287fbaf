"""A trained pipeline as a folder: diffusers' own files, and beside them how to call it and how it was trained."""

import json
import shutil
from pathlib import Path
from typing import Any


def write_model(
    pipe: Any, out: Path, call: dict[str, Any], readme: str, facts: dict[str, Any], run: Path, stages: list[str]
) -> Path:
    """Write the folder `out`, with call.json, README.md, training.json and the logs of `stages` from `run`."""
    out.mkdir(parents=True, exist_ok=True)
    pipe.save_pretrained(out)
    for config in out.rglob("config.json"):
        _without_origin(config)
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
