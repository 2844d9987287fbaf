"""Whether predictions and corrections are finite, asked without waiting for the device at every step."""

import math
from typing import Literal

import torch
from torch import Tensor

from ertacache.core.history import History
from ertacache.core.precision import wide
from ertacache.errors import PredictionDiverged

#: What a profile makes of outputs.
Made = Literal["prediction", "correction"]


def at_once(value: Tensor) -> bool:
    """Whether a number can be read where it was made without waiting for it: not on a device that runs behind."""
    return value.device.type == "cpu"


class FiniteWatch:
    """Notes one number per prediction or correction on its device; `read` brings the notes to the host together.

    A computed step is where that costs nothing to speak of: it takes many times what the wait does.

    Args:
        dtype: of the calibration, for the message.
    """

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._notes: list[tuple[int, Made, str, Tensor]] = []

    def note(self, step: int, target: str, value: Tensor, what: Made = "prediction") -> None:
        """Remember what was made [B, *] at a step: its sum is finite where every entry is."""
        self._notes.append((step, what, target, value.sum(dtype=wide(value.dtype))))

    def read(self, history: History) -> None:
        """Forget what was noted, or refuse it.

        Args:
            history: what the noted steps were predicted from.

        Raises:
            PredictionDiverged: at the first step that is not finite.
        """
        if not self._notes:
            return
        notes, self._notes = self._notes, []
        totals = [notes[0][3].item()] if len(notes) == 1 else torch.stack([total for _, _, _, total in notes]).tolist()
        for (step, what, target, _), total in zip(notes, totals, strict=True):
            if not math.isfinite(total):
                raise PredictionDiverged(self._message(step, what, target, history))

    def _message(self, step: int, what: Made, target: str, history: History) -> str:
        if what == "correction":
            cause = (
                "so does what the model computed, or the profile does not belong to this run: run the pipeline without "
                "the profile to see, and use a wider dtype"
            )
        elif history.finite:
            cause = (
                "what it was predicted from is finite, so that the coefficients do not belong to this run: check that "
                "the profile was calibrated for this model, compute more steps, or use a wider dtype"
            )
        else:
            cause = (
                "so is what the model computed before it: run the pipeline without the profile to see, and use a wider "
                "dtype"
            )
        return f"the {what} of {target!r} at step {step} holds NaN or infinity; {cause} (calibrated in {self._dtype})"
