"""Whose a denoiser call is: runs that end early and calls from elsewhere. Each run gives what it gives alone."""

import copy
import functools
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import ertacache.runtime.apply as ertacache
from ertacache.errors import UnsupportedPipeline
from ertacache.runtime.hooks import attachment_of
from small_requests import COMPUTED, PREDICTED, SITES, Case, Requests, T, by_hand, latent, view


class Stop(Exception):
    """Raised in the middle of a run."""


@pytest.fixture(params=SITES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("step", [0, 1, 3, 6])
@pytest.mark.parametrize("how", ["interrupt", "raise", "ctrl-c", "end"])
def test_a_run_ends_with_its_pipeline_call_and_lets_go_of_its_history(case: Case, how: str, step: int):
    kept: list[weakref.ref[Any]] = []

    def callback(pipe: Any, i: int, t: Tensor, x: Tensor) -> None:
        if i == step:
            kept.extend(weakref.ref(run.controller) for run in attachment_of(pipe).runs.all())
            pipe._interrupt = how == "interrupt"
            if how in ("raise", "ctrl-c"):
                raise Stop if how == "raise" else KeyboardInterrupt

    gc.disable()
    try:
        with case.applied() as stats:
            try:
                case.pipe(0, callback=callback, end=step + 1 if how == "end" else T)
            except (Stop, KeyboardInterrupt):
                pass
            assert attachment_of(case.pipe).runs.all() == []
            assert len(kept) == 1 and kept[0]() is None
            case.check_direct()
            assert torch.equal(case.other()(1), case.plain[1]) and stats.outside == 1 + T
            assert torch.equal(view(case.pipe)(1), case.cached[1]) and torch.equal(case.pipe(2), case.cached[2])
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_denoiser_that_raises_ends_the_run_though_the_error_is_kept(case: Case, call: int, error: Any):
    case.model.fail_at, case.model.error = call, error
    with case.applied() as stats:
        with pytest.raises(error) as kept:
            case.pipe(0)
        case.check_direct()
        assert stats.outside == 1 and kept.value.__traceback__ is not None
        assert torch.equal(view(case.pipe)(1), case.cached[1]) and torch.equal(case.pipe(2), case.cached[2])


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_call_that_raised_may_be_made_again(case: Case, call: int):
    case.model.fail_at = call

    def attempt(x: Tensor, t: Tensor) -> tuple[Tensor]:
        try:
            return case.model(x, t)
        except RuntimeError:
            return case.model(x, t)

    with case.applied() as stats:
        assert torch.equal(list(by_hand(attempt, case.pipe.scheduler, 0))[-1], case.cached[0])
    assert (stats.computed.total(), stats.predicted.total(), stats.outside) == (COMPUTED, PREDICTED, 0)


def test_a_step_that_raises_ends_the_run(case: Case):
    step, count = case.pipe.scheduler.step, [0]

    @functools.wraps(step)
    def raising(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == 4:
            raise Stop
        return step(*args, **kwargs)

    case.pipe.scheduler.step = raising
    with case.applied() as stats:
        with pytest.raises(Stop):
            case.pipe(0)
        case.check_direct()
        assert stats.outside == 1 and torch.equal(case.pipe(1), case.cached[1])


def test_calls_after_set_timesteps_alone_are_computed_and_counted(case: Case):
    with case.applied() as stats:
        case.pipe.scheduler.set_timesteps(T)
        for seed in range(3):
            case.check_direct(latent(seed))
        assert torch.equal(case.pipe(1), case.cached[1]) and stats.outside == 3


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_calls_after_a_loop_by_hand_that_broke_off(case: Case, steps: int):
    scheduler = case.pipe.scheduler
    with case.applied() as stats:
        x = latent(0)
        scheduler.set_timesteps(T)
        for t in scheduler.timesteps[:steps]:
            x = scheduler.step(case.model(x, t.expand(1))[0], t, x, return_dict=False)[0]
        other, t, before = latent(5), scheduler.timesteps[:1], case.model.calls
        assert torch.equal(case.model(other, t)[0], case.model.truth(other, t))  # another latent by the same way
        assert case.model.calls == before + 1
        case.check_direct(x)  # the same by another way
        assert stats.outside == 2


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_a_second_loop_by_hand_that_goes_on_in_the_same_function_is_refused(case: Case, steps: int):
    with case.applied():
        x, message = latent(0), f"goes on from the latent of a run that was broken off at step {steps}; make each"
        for scheduler, count in ((case.pipe.scheduler, steps), (copy.deepcopy(case.pipe.scheduler), 1)):
            scheduler.set_timesteps(T)
            for t in scheduler.timesteps[:count]:
                output = case.model(x, t.expand(1))[0]
                if scheduler is not case.pipe.scheduler:
                    with pytest.raises(UnsupportedPipeline, match=message):
                        scheduler.step(output, t, x, return_dict=False)
                    return
                x = scheduler.step(output, t, x, return_dict=False)[0]


class Stage(Requests):
    """From the latent that it is given."""

    def __call__(self, x: Tensor, num_inference_steps: int = T, end: int = T) -> Tensor:
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps[:end]:
            x = self.scheduler.step(self.transformer(x, t.expand(1))[0], t, x, return_dict=False)[0]
        return x


class Stages(Requests):
    """Two solvers one after the other in one call, of which the first ends early."""

    def __call__(self, seed: int, num_inference_steps: int = T, end: int = T) -> Tensor:
        x = latent(seed)
        for scheduler, last in ((self.scheduler, end), (copy.deepcopy(self.scheduler), T)):
            scheduler.set_timesteps(num_inference_steps)
            for t in scheduler.timesteps[:last]:
                x = scheduler.step(self.transformer(x, t.expand(1))[0], t, x, return_dict=False)[0]
        return x


@pytest.mark.parametrize("end", [1, 2, 3, 4, 8])
def test_a_second_solver_after_the_first_ended_early(case: Case, end: int):
    x = latent(0)
    for stage, last in ((Stage(case.pipe.scheduler, case.model), end), (Stage(case.pipe.scheduler, case.model), T)):
        with ertacache.apply(stage, case.profile):
            x = stage(x, end=last)
    with case.applied() as stats:
        assert torch.equal(Stages(case.pipe.scheduler, case.model)(0, end=end), x)
        assert (stats.runs, stats.outside) == (2, 0)


@pytest.mark.parametrize("step", [0, 1, 3, 6])
def test_calls_from_a_callback_are_computed(case: Case, step: int):
    def callback(pipe: Any, i: int, t: Tensor, x: Tensor) -> None:
        if i == step:
            for given in (x, x.clone(), latent(9)):
                case.check_direct(given)

    with case.applied() as stats:
        assert torch.equal(case.pipe(0, callback=callback), case.cached[0])
    assert (stats.computed.total(), stats.predicted.total(), stats.outside) == (COMPUTED, PREDICTED, 3)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("step", [0, 2, 4, 7])
def test_a_pipeline_within_a_callback_is_a_run_of_its_own(case: Case, step: int, known: bool):
    inner: list[Tensor] = []

    def callback(pipe: Any, i: int, t: Tensor, x: Tensor) -> None:
        if i == step:
            inner.append((view(case.pipe) if known else case.other())(1))

    with case.applied() as stats:
        assert torch.equal(case.pipe(0, callback=callback), case.cached[0])
        assert torch.equal(inner[0], (case.cached if known else case.plain)[1])
        assert stats.outside == (0 if known else T)
