"""The outputs for guidance that the denoiser calls of one step make: one per call, or several in one batch."""

from collections.abc import Collection, Mapping

from torch import Tensor

from ertacache.profile.checks import DIRECTION

__all__ = ["DIRECTION", "branch_count", "branch_names", "direction_of", "split", "two_branches"]


def branch_count(x: Tensor, batch: int) -> int:
    """How often a batch of samples stands in that of a denoiser call [n B, *]."""
    count, rest = divmod(len(x), max(1, batch))
    return 1 if rest or not count else count


def branch_names(outputs: Mapping[str, Tensor], guided: Tensor) -> tuple[str, ...]:
    """A name for each branch: the call's own, or `cond_uncond:0`, `cond_uncond:1` for the parts of its batch.

    Args:
        outputs: what each call of one step returned [n B, *], by call name.
        guided: [B, *] what the solver receives.

    Returns:
        None at all where a branch is not shaped like `guided`, which it could then not help to predict.
    """
    names: list[str] = []
    for context, output in outputs.items():
        count, rest = divmod(len(output), len(guided))
        if rest or output.shape[1:] != guided.shape[1:]:
            return ()
        names += [context] if count == 1 else [f"{context}:{n}" for n in range(count)]
    return tuple(names)


def split(context: str, output: Tensor, known: Collection[str]) -> list[tuple[str, Tensor]]:
    """The branches [B, *] among `known` that the output [n B, *] of a call holds, by name."""
    if context in known:
        return [(context, output)]
    found = (name for name in known if name.startswith(f"{context}:"))
    names = sorted(found, key=lambda name: int(name.removeprefix(f"{context}:")))
    return list(zip(names, output.chunk(len(names)), strict=True)) if names else []


def two_branches(outputs: Mapping[str, Tensor], guided: Tensor) -> tuple[Tensor, Tensor] | None:
    """The conditional and the unconditional branch [B, *] of one step, each shaped like `guided`.

    Of two calls the first is taken for the conditional one, of one call with twice the batch the second half.

    Args:
        outputs: what each call of the step returned [n B, *], by call name.
        guided: [B, *] what the pipeline made of them.

    Returns:
        None where there are not exactly two branches that could make up `guided`.
    """
    found = list(outputs.values())
    if len(found) == 1 and len(found[0]) == 2 * len(guided):
        found = [*found[0].chunk(2)][::-1]
    parts = [part for output in found if (part := _part(output, guided)) is not None]
    return (parts[0], parts[1]) if len(found) == len(parts) == 2 else None


def direction_of(outputs: Mapping[str, Tensor], guided: Tensor) -> Tensor | None:
    """The guidance direction c − u [B, *] of one step, the source `DIRECTION`, in the dtype of the outputs.

    It is a tensor of its own, which nobody else changes. Arguments and None as in `two_branches`.
    """
    branches = two_branches(outputs, guided)
    return None if branches is None else branches[0] - branches[1]


def _part(output: Tensor, guided: Tensor) -> Tensor | None:
    """What the solver is given of an output: without axes of length 1, conditions or a learned variance."""
    if output.numel() == guided.numel():
        return output.reshape(guided.shape)
    if output.ndim != guided.ndim or len(output) != len(guided):
        return None
    if any(n < m for n, m in zip(output.shape, guided.shape, strict=True)):
        return None
    return output[tuple(slice(m) for m in guided.shape)]
