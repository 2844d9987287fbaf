"""The outputs for guidance that the denoiser calls of one step make: one per call, or several in one batch."""

from collections.abc import Collection, Mapping

from torch import Tensor


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
