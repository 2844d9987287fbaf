"""The bundled models and where they lie."""

from pathlib import Path

from ertacache.errors import InvalidArgument

#: tiny-flux takes its guidance weight as an input; its parent tiny-flux-base runs with true_cfg_scale.
NAMES = ("tiny-flux", "tiny-flux-base")


def folder(name: str) -> Path:
    """The diffusers folder of a bundled model.

    Raises:
        InvalidArgument: no such model.
    """
    if name not in NAMES:
        raise InvalidArgument(f"no bundled model {name!r}; there are {', '.join(NAMES)}")
    return Path(__file__).parent / "models" / name


def calibration_prompts(n: int = 24) -> list[str]:
    """Captions from the training split, for calibration."""
    from ertacache.zoo import scenes

    return [scene.caption for scene in scenes.sample(n, 101, "train")]


def heldout_prompts(n: int = 32) -> list[str]:
    """Captions that neither training nor calibration has seen, for evaluation."""
    from ertacache.zoo import scenes

    return [scene.caption for scene in scenes.sample(n, 202, "heldout")]
