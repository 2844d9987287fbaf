"""A command's model and prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ertacache.cli.command import shows_progress
from ertacache.cli.options import Placement
from ertacache.errors import InvalidArgument
from ertacache.evaluation.separate import check_separate
from ertacache.pipelines import bundled
from ertacache.pipelines.loading import check_model, check_placement, load_pipeline, read_prompts


def check(model: str, placement: Placement) -> None:
    """Refuse what cannot be loaded, before the long import of all that loads it.

    Raises:
        InvalidArgument: as `load_pipeline`.
    """
    check_model(model)
    check_placement(*placement)


def load(model: str, placement: Placement) -> Any:
    """The pipeline; without diffusers' and transformers' bars where progress is not shown."""
    if not shows_progress():
        from diffusers.utils import logging as diffusers_log
        from transformers.utils import logging as transformers_log

        diffusers_log.disable_progress_bar()
        transformers_log.disable_progress_bar()
    return load_pipeline(model, *placement)


def prompts_of(
    model: str, path: Path | None, captions: Callable[..., list[str]], option: str, texts: Sequence[str] = ()
) -> list[str]:
    """Prompts given one by one and in a file; those of the bundled model where none were given.

    Raises:
        InvalidArgument: an empty one, a file that cannot be read, or none at all.
    """
    if any(not text.strip() for text in texts):
        raise InvalidArgument("--prompt is empty; say what to draw")
    if texts or path is not None:
        return [*texts, *(read_prompts(path) if path is not None else ())]
    if model in bundled.NAMES:
        return captions(name=model)
    raise InvalidArgument(f"{model!r} has no bundled prompts; give a file with {option}")


def held_out(model: str, prompts: Path | None, calibration_prompts: Path | None) -> tuple[list[str], list[str]]:
    """Prompts to measure and prompts to calibrate on.

    Raises:
        InvalidArgument: as `prompts_of`, or a prompt is in both.
    """
    held = prompts_of(model, prompts, bundled.heldout_prompts, "--prompts")
    texts = prompts_of(model, calibration_prompts, bundled.calibration_prompts, "--calibration-prompts")
    check_separate(texts, held)
    return held, texts
