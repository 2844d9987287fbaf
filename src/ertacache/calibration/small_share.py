"""What a call of a small model costs beside one of the denoiser, in operations that are counted."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ertacache.calibration.first_steps import Seen, broken_off
from ertacache.calibration.prompts import Prompts
from ertacache.errors import UnsupportedPipeline
from ertacache.runtime.flops import FlopCounter
from ertacache.runtime.run import Controller, Run
from ertacache.runtime.small_model import SmallModel, check_answer


@dataclass
class _Counting(Controller):
    """Makes the first denoiser call of a run with both models, and ends it."""

    small: SmallModel
    share: float | None = None

    def call(self, run: Run, context: str, x: Tensor, compute: Any) -> Tensor:
        with FlopCounter() as large:
            output = compute()
        with FlopCounter() as little:
            check_answer(compute(self.small.called(run.denoiser)), tuple(output.shape))
        self.share = little.total / large.total if little.total and large.total else 1.0
        raise Seen


def share_of_small(pipe: Any, prompts: Prompts, call: dict[str, Any], small: SmallModel) -> float:
    """The operations of one call of the small model as a share of the denoiser's, counted on the first of the prompts.

    Of a model without a single product or convolution there is none to count: a call is then worth as much.

    Raises:
        SplitMismatch: the small model cannot be called with the pipeline's arguments, or returns another shape.
        UnsupportedPipeline: the pipeline ran no step of its denoiser.
    """
    counting = _Counting(small)
    broken_off(pipe, prompts.first(1), counting, call)
    if counting.share is None:
        raise UnsupportedPipeline(f"{type(pipe).__name__} ran no step of its denoiser; give it one step or more")
    return counting.share
