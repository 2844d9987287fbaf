"""Which schedulers refuse another time grid, and why."""

from collections.abc import Callable
from typing import Any

import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from ertacache.errors import UnsupportedPipeline
from ertacache.pipelines.solvers import check_free_grid
from solver_pipelines import FLOW, SCHEDULERS

REFUSED: list[tuple[Any, str]] = [
    (lambda: FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "it draws noise in every step"),
    (lambda: UniPCMultistepScheduler(), "does not run on flow sigmas: set use_flow_sigmas=True"),
    (lambda: DPMSolverMultistepScheduler(), "does not run on flow sigmas"),
    (lambda: DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++"), "it draws noise in every step"),
    (lambda: UniPCMultistepScheduler(**FLOW, solver_p=DDIMScheduler()), "solver_p keeps a grid of its own"),
    (lambda: UniPCMultistepScheduler(**FLOW, use_exponential_sigmas=True), "use_exponential_sigmas takes the place"),
    (lambda: DDPMScheduler(), "it draws noise in every step"),
    (lambda: FlowMatchHeunDiscreteScheduler(), "it calls the denoiser 2 times per step"),
    (lambda: EulerDiscreteScheduler(), "how it follows another grid is not known"),
]


@pytest.mark.parametrize(("make", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_schedulers_that_would_not_follow_are_refused(make: Callable[[], Any], reason: str) -> None:
    scheduler = make()
    message = f"{type(scheduler).__name__} cannot be changed: .*{reason}.*timesteps='none', or use one of FlowMatch"
    with pytest.raises(UnsupportedPipeline, match=message):
        check_free_grid(scheduler)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_others_are_not(name: str) -> None:
    check_free_grid(SCHEDULERS[name]())


def test_the_older_algorithm_is_refused() -> None:
    scheduler = DPMSolverMultistepScheduler(**FLOW)
    scheduler.register_to_config(algorithm_type="dpmsolver")
    with pytest.raises(UnsupportedPipeline, match=r"algorithm_type is 'dpmsolver', not 'dpmsolver\+\+'"):
        check_free_grid(scheduler)
