"""The corrections of one run of a quantised denoiser, with the raw output that the next one may read."""

from torch import Tensor

from ertacache.runtime.coefficients import Coefficients


class Compensating:
    """Holds what the step before computed, where the step under way reads it."""

    def __init__(self) -> None:
        self._raw: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that are held from one step to the next."""
        return 0 if self._raw is None else self._raw.nbytes

    def forget(self) -> None:
        """Where a step is predicted, another denoiser takes over or the run ends, nothing leads on from before."""
        self._raw = None

    def corrected(self, step: int, coefficients: Coefficients, output: Tensor) -> Tensor:
        """The raw output [B, *] of a computed step, corrected; itself where nothing corrects it.

        After a late start, or guidance that came or went, no error of the step before was carried on, and nothing is
        made up for it: neither a term for its output, nor the part of the bias that goes with that.
        """
        before, self._raw = self._raw, None
        if coefficients.reads_previous(step + 1):
            self._raw = output.clone()  # the pipeline may change it in place, and a CUDA graph overwrites it
        leads_on = before is not None and before.shape == output.shape
        correction = coefficients.compensates(step, output, leads_on=leads_on)
        return output if correction is None else correction(output, before)
