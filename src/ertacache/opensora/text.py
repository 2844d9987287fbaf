"""A prompt as Open-Sora 1.2 was trained on it: with its scores, and cleaned."""

from diffusers import PixArtSigmaPipeline

from ertacache.errors import InvalidArgument
from ertacache.extras import require


def check_cleaning() -> None:
    """Refuse to clean where what it needs is not there.

    Raises:
        MissingExtra: Beautiful Soup or ftfy.
    """
    require("cleaning prompts as Open-Sora does", "bs4", "ftfy", instead="or pass clean_caption=False")


def prepared(
    prompt: str,
    aesthetic_score: float | None = None,
    motion_score: float | None = None,
    camera_motion: str | None = None,
    *,
    clean: bool = True,
) -> str:
    """The text that is encoded: the prompt, the scores that are given and not in it yet, all cleaned twice.

    Args:
        aesthetic_score, motion_score: written with one digit after the point.
        camera_motion: such as "pan right".
        clean: diffusers' cleaning for PixArt; else the text is only stripped and lowered.

    Source: Open-Sora 1.2.
    """
    suffixes = {
        "aesthetic score:": None if aesthetic_score is None else f"{aesthetic_score:.1f}",
        "motion score:": None if motion_score is None else f"{motion_score:.1f}",
        "camera motion:": camera_motion,
    }
    for name, value in suffixes.items():
        if value is not None and name not in prompt:
            prompt = f"{prompt} {name} {value}."
    return _cleaned(_cleaned(prompt)) if clean else prompt.lower().strip()


def check_scores(**scores: object) -> None:
    """Refuse scores that are no finite numbers, or no text for the camera.

    Raises:
        InvalidArgument: naming the first.
    """
    for name, value in scores.items():
        if name == "camera_motion":
            fits, kind = isinstance(value, str) and bool(value.strip()), "a text such as 'pan right'"
        else:
            fits, kind = _is_finite(value), "a finite number"
        if value is not None and not fits:
            raise InvalidArgument(f"{name} is {value!r}; give {kind}, or None to leave it out of the prompt")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _cleaned(text: str) -> str:
    # It asks its pipeline only for a pattern that the class has.
    return PixArtSigmaPipeline._clean_caption(PixArtSigmaPipeline, text)  # pyright: ignore[reportPrivateUsage, reportArgumentType]
