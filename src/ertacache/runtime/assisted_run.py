"""A run under a profile that also predicts from a small model, called at the predicted step itself."""

from collections.abc import Callable

from torch import Tensor

from ertacache.core.history import History
from ertacache.profile.checks import SMALL
from ertacache.runtime.played_run import PlayedRun, Plays
from ertacache.runtime.run import Run
from ertacache.runtime.scales import Scales
from ertacache.runtime.small_model import SmallModel, check_answer


class AssistedRun(PlayedRun):
    """On a predicted step the pipeline is handed the small model's outputs in place of placeholders, so that what it
    makes of them, guidance and all, is one more source of formula (P).

    Args:
        small: asked at the steps whose row has a coefficient for it.
    """

    def __init__(self, scales: Scales, history: History, player: Plays, small: SmallModel) -> None:
        super().__init__(scales, history, player)
        self._small = small

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[..., Tensor]) -> Tensor:
        computed: list[Tensor] = []

        def counted() -> Tensor:
            computed.append(compute())
            return computed[-1]

        value = super().call(run, context, x, counted)
        if computed or not self._asks(run):
            return value
        answer = check_answer(compute(self._small.called(run.denoiser)), tuple(value.shape))
        self.stats.small[context] += 1
        return answer

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        if self._predicts and self._asks(run):
            self.history.push(SMALL, output)
        return super().solve(run, output, x)

    def _asks(self, run: Run) -> bool:
        terms = self._coefficients.terms(run.step, "guided", self.history.device)
        return any(source == SMALL for source, _, _ in terms.a)
