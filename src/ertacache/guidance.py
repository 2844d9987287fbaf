"""The guidance weight of a two-branch run, read off what the pipeline does."""

from collections.abc import Sequence

import torch
from torch import Tensor


class TwoBranchGuidance:
    """Infers w of g = u + w (c − u) from the calls of one computed step; pipelines keep w in a local variable."""

    def __init__(self, contexts: Sequence[str]) -> None:
        self._wanted = tuple(contexts) if len(contexts) <= 2 else ()
        self._seen: dict[str, Tensor] = {}

    def observe(self, context: str, output: Tensor) -> None:
        """Keep the output [B, *] of one call of this step."""
        if context in self._wanted:
            self._seen[context] = output

    def weight(self, guided: Tensor) -> float | None:
        """w, by projection on c − u: ⟨g − u, c − u⟩ / ‖c − u‖². None where there are not two branches.

        Of two calls the first is taken for the conditional one, of one call with twice the batch the second half;
        a pipeline that has them the other way round gives 1 − w instead, which still names one guidance weight.

        Args:
            guided: [B, *], what the pipeline made of the calls.
        """
        seen = [self._seen[name].float() for name in self._wanted if name in self._seen]
        self._seen.clear()
        if len(seen) == 1 and len(seen[0]) == 2 * len(guided):
            seen = [*seen[0].chunk(2)][::-1]
        if len(seen) != 2 or seen[0].shape != guided.shape:
            return None
        cond, uncond = seen
        difference = cond - uncond
        energy = torch.sum(difference * difference)
        if energy == 0:
            return None
        return float(torch.sum((guided.float() - uncond) * difference) / energy)
