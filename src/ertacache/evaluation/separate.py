"""Prompts that are measured are no prompts that anything was calibrated on."""

from collections.abc import Iterable

from ertacache.errors import InvalidArgument


def check_separate(calibrated: Iterable[str], measured: Iterable[str]) -> None:
    """Refuse prompts that are in both lists.

    Raises:
        InvalidArgument: naming one of them.
    """
    if shared := sorted(set(calibrated) & set(measured)):
        raise InvalidArgument(
            f"{len(shared)} prompt(s) are calibrated and measured on, such as {shared[0]!r}; separate them"
        )
