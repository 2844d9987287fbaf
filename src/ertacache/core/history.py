"""What the computed steps of a run leave behind for the predicted ones."""

from torch import Tensor

from ertacache.errors import PredictorInvalid


class History:
    """The newest outputs and inputs of a run, by source.

    Args:
        levels: how many outputs to keep per source. Of the inputs, only the newest per source is kept.
    """

    def __init__(self, levels: int) -> None:
        self._levels = levels
        self._outputs: dict[str, list[Tensor]] = {}
        self._inputs: dict[str, Tensor] = {}
        self.newest: Tensor | None = None
        """The output pushed last, of whichever source."""

    def push(self, source: str, output: Tensor, x: Tensor | None = None) -> None:
        """Record a computed step: its output [B, *] and, for predictors with d, its input [B, *]."""
        self._outputs[source] = [output, *self._outputs.get(source, [])][: self._levels]
        self._inputs.pop(source, None)  # an older step's input must never stand in for this one's
        if x is not None:
            self._inputs[source] = x
        self.newest = output

    def outputs(self, source: str) -> list[Tensor]:
        """The outputs [B, *] kept for `source`, newest first."""
        return list(self._outputs.get(source, []))

    def depth(self, source: str) -> int:
        """Number of outputs kept for `source`."""
        return len(self._outputs.get(source, []))

    @property
    def x(self) -> Tensor | None:
        """The input pushed last, of whichever source."""
        return next(reversed(self._inputs.values()), None)

    def input(self, source: str) -> Tensor:
        """The input [B, *] of the newest output of `source`; failing that, the one pushed last.

        Raises:
            PredictorInvalid: no input was pushed.
        """
        x = self._inputs.get(source, self.x)
        if x is None:
            raise PredictorInvalid(f"d needs an input of '{source}' and none is held; push(source, output, x)")
        return x

    def clear(self) -> None:
        """Forget everything, as at the start of a run."""
        self._outputs.clear()
        self._inputs.clear()
        self.newest = None

    @property
    def nbytes(self) -> int:
        """Bytes of the distinct storages kept alive."""
        held = [t for outputs in self._outputs.values() for t in outputs] + list(self._inputs.values())
        storages = [t.untyped_storage() for t in held]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
