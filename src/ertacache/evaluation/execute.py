"""One run of a pipeline under a compared method, counted from outside of it."""

from typing import Any

from torch import Tensor

from ertacache.baselines.baseline import Baseline
from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.runtime.watch import Executed, Watch


def execute(
    pipe: Any,
    method: Baseline | None,
    prompts: Prompts,
    call: dict[str, Any],
    *,
    flops: bool = False,
    keep_outputs: bool = False,
    decode: bool = True,
) -> tuple[Tensor, Executed]:
    """One pipeline call under a method (None: uncached), counted from outside of it.

    Returns:
        Images or frames (final latents where `decode` is False) and what was executed.

    Raises:
        UnsupportedPipeline: the call runs its solver more than once.
    """
    if method is not None and method.other_solver:  # whose steps are those to count
        changed = method.call(call)
        with method.applied(pipe, changed):
            return execute(pipe, None, prompts, changed, flops=flops, keep_outputs=keep_outputs, decode=decode)
    with Watch(pipe, flops=flops, keep_outputs=keep_outputs, one_run=True) as watch:
        if method is None:
            return call_pipeline(pipe, prompts, call, decode=decode), watch.executed
        changed = method.call(call)
        with method.applied(pipe, changed):
            return call_pipeline(pipe, prompts, changed, decode=decode), watch.executed
