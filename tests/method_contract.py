"""What every compared method has to keep: nothing left behind, no memory of the last prompt, batches independent."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ertacache.baselines.baseline import Baseline
from ertacache.calibration.prompts import Prompts
from ertacache.evaluation.execute import execute
from ertacache.runtime.watch import Executed
from pipelines import CALL, CFG_CALL, PROMPTS, VIDEO_CALL, cogvideox, flux, wan

#: What a method is checked on: pipeline, call, blocks of its denoiser, denoiser calls per step.
PIPELINES = [
    pytest.param(flux, CALL, 6, 1, id="flux"),
    pytest.param(lambda: flux(False), CFG_CALL, 6, 2, id="flux-cfg"),
    pytest.param(wan, VIDEO_CALL, 3, 2, id="wan"),
    pytest.param(cogvideox, VIDEO_CALL, 3, 1, id="cogvideox"),
]
FIRST, SECOND = Prompts(tuple(PROMPTS[:1]), 0), Prompts(tuple(PROMPTS[1:2]), 1)


def check_contract(build: Callable[[], Any], method: Baseline, call: dict[str, Any]) -> Executed:
    """Check `method` on pipelines from `build`; returns what its first prompt executed, to check the counts of."""
    pipe, fresh = build(), build()
    assert method.refusal(pipe, call) is None
    plain, everything = execute(pipe, None, FIRST, call)
    parts = [name for name, _ in pipe.transformer.named_modules()]
    changed = method.call(call)
    with method.applied(pipe, changed):
        first, executed = execute(pipe, None, FIRST, changed)
        second = execute(pipe, None, SECOND, changed)[0]
        again = execute(pipe, None, FIRST, changed)[0]
    assert torch.equal(first, again), "the second prompt left something behind"
    assert torch.equal(second, execute(fresh, method, SECOND, call)[0]), "the first prompt left something behind"
    assert torch.equal(plain, execute(pipe, None, FIRST, call)[0]), "the pipeline is not what it was"
    assert [name for name, _ in pipe.transformer.named_modules()] == parts, "other caches go by the order of the parts"
    _check_inactive(pipe, everything, call)
    _check_batch(fresh, method, call, first, second)
    return executed


def _check_inactive(pipe: Any, before: Executed, call: dict[str, Any]) -> None:
    after = execute(pipe, None, FIRST, call)[1]
    assert after.signature == before.signature, "something still caches"


def _check_batch(pipe: Any, method: Baseline, call: dict[str, Any], first: torch.Tensor, second: torch.Tensor) -> None:
    both = execute(pipe, method, Prompts(tuple(PROMPTS[:2]), 0), call)[0]
    apart = (both - torch.cat([first, second])).abs().max()
    if not method.batch:
        assert apart < 1e-5, f"a batch of two is {apart:.2g} away from two batches of one"
