"""The bundled models, by name: their weights and captions come with a distribution of their own, ertacache-zoo."""

from importlib import import_module
from pathlib import Path
from typing import Any

from ertacache.errors import InvalidArgument, meant
from ertacache.extras import require

#: Known without the zoo, so that a name is never taken for a Hub id.
IMAGE_NAMES = ("tiny-flux", "tiny-flux-base")
VIDEO_NAMES = ("tiny-wan", "tiny-cogvideox", "tiny-open-sora")
#: The small side of a split run, which draws pictures too; no benchmark compares caches on it.
DEVICE_NAMES = ("nano-flux",)
NAMES = (*IMAGE_NAMES, *VIDEO_NAMES, *DEVICE_NAMES)


def check_name(name: str) -> None:
    """Refuse what is no bundled model, with the name that was meant where one is near: `InvalidArgument`."""
    if name not in NAMES:
        raise InvalidArgument(f"no bundled model {name!r}; there are {', '.join(NAMES)}{meant(name, NAMES)}")


def folder(name: str) -> Path:
    """The diffusers folder of a bundled model.

    Raises:
        InvalidArgument: no such model.
        MissingExtra: the zoo is not installed.
    """
    return _catalogue(name).folder(name)


def calibration_prompts(n: int = 24, name: str = "tiny-flux") -> list[str]:
    """`n` captions from the training split, for calibration of the bundled model `name`.

    Raises:
        InvalidArgument, MissingExtra: as `folder`.
    """
    return _catalogue(name).calibration_prompts(n, name)


def heldout_prompts(n: int = 32, name: str = "tiny-flux") -> list[str]:
    """`n` captions that neither training nor calibration of the model `name` has seen, for evaluation.

    Raises:
        InvalidArgument, MissingExtra: as `folder`.
    """
    return _catalogue(name).heldout_prompts(n, name)


def _catalogue(name: str) -> Any:
    check_name(name)
    require(f"the bundled model {name!r}", "ertacache_zoo")
    return import_module("ertacache_zoo.catalogue")
