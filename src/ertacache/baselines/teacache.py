"""TeaCache: reuse while the predicted change of the output, added up, stays small."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from ertacache.baselines import teacache_signal
from ertacache.baselines.baseline import Baseline, Bench, Knob, denoiser_class
from ertacache.baselines.teacache_calibration import calibrate_teacache, polynomial
from ertacache.baselines.teacache_signal import SignalController, distance
from ertacache.errors import CalibrationError
from ertacache.runtime.hooks import attached
from ertacache.runtime.run import Run

#: Steps that the `ret_steps` variant always computes at the start of a run.
RETAINED = 5

#: Published polynomials, highest degree first; each belongs to the weights that it was fitted on. The last two are
#: for `ret_steps`.
COEFFICIENTS = {
    "FLUX.1-dev": (4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401e00, 2.64230861e-01),
    "Wan2.1-T2V-1.3B": (2.39676752e03, -1.31110545e03, 2.01331979e02, -8.29855975e00, 1.37887774e-01),
    "Wan2.1-T2V-14B": (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
    "CogVideoX-2B": (-3.10658903e01, 2.54732368e01, -5.92380459e00, 1.75769064e00, -3.61568434e-03),
    "CogVideoX-5B": (-1.53880483e03, 8.43202495e02, -1.34363087e02, 7.97131516e00, -5.23162339e-02),
    "Open-Sora 1.2": (2.17546007e02, -1.18329252e02, 2.68662585e01, -4.59364272e-02, 4.84426240e-02),
    "Wan2.1-T2V-1.3B ret_steps": (-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02),
    "Wan2.1-T2V-14B ret_steps": (-3.03318725e05, 4.90537029e04, -2.65530556e03, 5.87365115e01, -3.15583525e-01),
}

#: Denoiser class, name of the setting, weights, threshold. No threshold of `ret_steps` is known to us.
_PUBLISHED = (
    ("FluxTransformer2DModel", "slow", "FLUX.1-dev", 0.25),
    ("FluxTransformer2DModel", "fast", "FLUX.1-dev", 0.6),
    ("WanTransformer3DModel", "slow", "Wan2.1-T2V-1.3B", 0.05),
    ("WanTransformer3DModel", "fast", "Wan2.1-T2V-1.3B", 0.08),
    ("WanTransformer3DModel", "14B slow", "Wan2.1-T2V-14B", 0.14),
    ("WanTransformer3DModel", "14B fast", "Wan2.1-T2V-14B", 0.2),
    ("CogVideoXTransformer3DModel", "slow", "CogVideoX-2B", 0.1),
    ("CogVideoXTransformer3DModel", "fast", "CogVideoX-2B", 0.2),
    ("CogVideoXTransformer3DModel", "5B slow", "CogVideoX-5B", 0.1),
    ("CogVideoXTransformer3DModel", "5B fast", "CogVideoX-5B", 0.2),
    ("STDiT3Transformer3DModel", "slow", "Open-Sora 1.2", 0.1),
    ("STDiT3Transformer3DModel", "fast", "Open-Sora 1.2", 0.2),
)


@dataclass(frozen=True)
class TeaCache(Baseline):
    """The residual of the block stack is reused while Σ p(d) stays below a threshold (arXiv 2411.19108).

    d is the relative L1 distance of a signal to that of the step before, computed or not: the first block's modulated
    image tokens (FLUX, Open-Sora) or the time embedding (Wan, CogVideoX). The sum starts afresh at every computed
    step, for each context by itself. The first and the last step are computed. p may be negative, and is added all the
    same, as published.

    Args:
        threshold: of the sum, a relative L1 distance of outputs.
        coefficients: of p, five numbers, highest degree first; None to have `calibrated` fit them.
        ret_steps: Wan's second variant: the signal is the six-way projection of the time embedding, and the first five
            steps are computed, but not necessarily the last.
        calibration_prompts: that `calibrated` uses.
    """

    key: ClassVar[str] = "teacache"
    title: ClassVar[str] = "TeaCache"
    paper: ClassVar[str] = "arXiv 2411.19108"
    work: ClassVar[str] = "the embeddings, the first block's modulation (FLUX, Open-Sora) and the head"
    knob: ClassVar[Knob] = Knob("threshold", 0.0, 2.0)
    batch: ClassVar[str] = "one decision for the whole batch, from the mean over its entries"

    threshold: float = 0.2
    coefficients: tuple[float, ...] | None = None
    ret_steps: bool = False
    calibration_prompts: int = 8

    @classmethod
    def published(cls) -> Mapping[str, Mapping[str, Self]]:
        settings: dict[str, dict[str, Self]] = {}
        for denoiser, name, weights, threshold in _PUBLISHED:
            settings.setdefault(denoiser, {})[name] = cls(threshold, COEFFICIENTS[weights])
        return settings

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        return teacache_signal.refusal(denoiser_class(pipe), self.ret_steps)

    def calibrated(self, bench: Bench) -> Self:
        """With coefficients fitted on the bench's prompts, unless there are some.

        Raises:
            CalibrationError: as `calibrate_teacache`.
        """
        if self.coefficients is not None:
            return self
        found = calibrate_teacache(bench, prompts=self.calibration_prompts, ret_steps=self.ret_steps)
        bench.notes["l1.json"] = found.to_json()
        return replace(self, coefficients=found.coefficients)

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """See `Baseline.applied`.

        Raises:
            CalibrationError: there are no coefficients.
        """
        if self.coefficients is None:
            raise CalibrationError(
                f"TeaCache has no coefficients for this {denoiser_class(pipe)}; fit them with calibrated(bench), or "
                "give coefficients=, such as those of TeaCache.published()"
            )
        return attached(pipe, _Reuse(self.threshold, self.coefficients, self.ret_steps), hidden=True)


@dataclass
class _Stream:
    """One context in one run: the last signal, the last computed residual and the sum since then."""

    signal: Tensor | None = None
    residual: Tensor | None = None
    total: float = 0.0


class _Reuse(SignalController):
    def __init__(self, threshold: float, coefficients: tuple[float, ...], ret_steps: bool) -> None:
        super().__init__(ret_steps)
        self._threshold, self._coefficients, self._ret_steps = threshold, coefficients, ret_steps

    def reset(self) -> None:
        super().reset()
        self._streams: dict[str, _Stream] = {}

    def entered(self, run: Run, context: str, signal: Tensor) -> Tensor | None:
        stream = self._streams.setdefault(context, _Stream())
        # Copies, as a CUDA graph overwrites its tensors in its next call.
        previous, stream.signal = stream.signal, signal.clone()
        if previous is not None and not self._always_computed(run):
            stream.total += polynomial(self._coefficients, distance(signal, previous))
            if stream.total < self._threshold:
                return stream.residual
        stream.total = 0.0
        return None

    def computed(self, context: str, residual: Tensor, output: Tensor) -> None:
        self._streams[context].residual = residual.clone()

    def _always_computed(self, run: Run) -> bool:
        if self._ret_steps:
            return run.steps_done < RETAINED
        return run.steps_done == 0 or run.step == run.T - 1
