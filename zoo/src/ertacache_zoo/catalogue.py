"""The bundled models, where they lie and the captions that belong to them."""

from pathlib import Path
from typing import Literal

from ertacache.pipelines.bundled import DEVICE_NAMES, IMAGE_NAMES, NAMES, VIDEO_NAMES, check_name

__all__ = ["DEVICE_NAMES", "IMAGE_NAMES", "NAMES", "VIDEO_NAMES", "calibration_prompts", "folder", "heldout_prompts"]


def folder(name: str) -> Path:
    """The diffusers folder of a bundled model.

    Raises:
        InvalidArgument: no such model.
    """
    check_name(name)
    return Path(__file__).parent / "models" / name


def calibration_prompts(n: int = 24, name: str = "tiny-flux") -> list[str]:
    """`n` captions from the training split, for calibration of the bundled model `name`.

    Raises:
        InvalidArgument: no such model.
    """
    return _captions(n, name, 101, "train")


def heldout_prompts(n: int = 32, name: str = "tiny-flux") -> list[str]:
    """`n` captions that neither training nor calibration of the model `name` has seen, for evaluation.

    Raises:
        InvalidArgument: no such model.
    """
    return _captions(n, name, 202, "heldout")


def _captions(n: int, name: str, seed: int, split: Literal["train", "heldout"]) -> list[str]:
    from ertacache_zoo import clips, scenes

    folder(name)
    drawn = clips.sample(n, seed, split) if name in VIDEO_NAMES else scenes.sample(n, seed, split)
    return [item.caption for item in drawn]
