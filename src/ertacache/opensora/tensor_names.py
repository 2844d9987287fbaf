"""Names of tensors in a message: which are wrong with a checkpoint."""

from collections.abc import Iterable

_SHOWN = 5


def wrong_names(**kinds: Iterable[str]) -> str:
    """ "missing: a, b; unknown: c", of those kinds of which there are any; empty where all is right."""
    return "; ".join(f"{kind}: {listed(names)}" for kind, names in kinds.items() if names)


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    ordered = sorted(names)
    return ", ".join(ordered[:_SHOWN]) + (f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else "")
