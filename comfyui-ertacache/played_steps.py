"""One run under a profile, step by step: what calls the model, and what stands in for it.

ComfyUI's samplers work with the denoised latent. The plan is one for the slope v = (x − denoised) / σ: the velocity of
a flow and the noise of a k-diffusion model alike, and what changes least from step to step.
"""

from collections.abc import Callable

from torch import Tensor

from ertacache.core.history import History
from ertacache.core.precision import widen
from ertacache.profile.profile import Profile
from ertacache.runtime.finite_watch import FiniteWatch, at_once

TARGET = "guided"


def slope(x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
    """v [B, *] in float32 (float64 for float64 latents) from a latent and what the model makes of it, [B, *] each."""
    return (widen(x) - widen(denoised)) / sigma


def denoised_of(x: Tensor, v: Tensor, sigma: float) -> Tensor:
    """Inverse of `slope`, in the dtype of x."""
    return (widen(x) - sigma * v).to(x.dtype)


class PlayedSteps:
    """Answers each step of one run.

    Attributes:
        computed, predicted: steps so far.
    """

    def __init__(self, profile: Profile) -> None:
        self._schedule, predictor = profile.schedule, profile.predictor
        self._terms, self._inputs = predictor.terms, bool(predictor.d.any())
        self._history = History(predictor.depths())
        self._finite = FiniteWatch(profile.provenance.dtype)
        self.computed = self.predicted = 0

    def denoised(self, step: int, x: Tensor, sigma: float, compute: Callable[[], Tensor]) -> Tensor:
        """The denoised latent [B, *] at a step: the model's own, bit for bit, or a predicted one.

        Args:
            x: the noisy latent [B, *].
            compute: calls the model.

        Raises:
            PredictionDiverged: a prediction holds NaN or infinity; said at the next computed step on a device.
        """
        if self._schedule.computed[step]:
            result = compute()
            self._finite.read(self._history)
            self._history.push(TARGET, slope(x, result, sigma), x.clone() if self._inputs else None)
            self.computed += 1
            return result
        v = self._terms(step, TARGET, self._history.device)(self._history, x)
        self._finite.note(step, TARGET, v)
        if at_once(v):
            self._finite.read(self._history)
        self.predicted += 1
        return denoised_of(x, v, sigma)

    def end(self) -> None:
        """What is left to be said once the run is over.

        Raises:
            PredictionDiverged: as `denoised`.
        """
        self._finite.read(self._history)
