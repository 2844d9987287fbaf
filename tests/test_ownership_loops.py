"""Whose a denoiser call is, in loops of every form, and what becomes of the variables of the function they lie in."""

import functools
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

import ertacache.runtime.apply as ertacache
from ertacache.runtime.hooks import attachment_of
from small_requests import COMPUTED, SITES, Case, Requests, T, latent, view


@pytest.fixture(params=SITES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def recursive(self: Any, x: Tensor, i: int = 0) -> Tensor:
    if i == T:
        return x
    t = self.scheduler.timesteps[i]
    return recursive(self, self.scheduler.step(self.transformer(x, t.expand(1))[0], t, x, return_dict=False)[0], i + 1)


def reduced(self: Any, x: Tensor) -> Tensor:
    def one(x: Tensor, t: Tensor) -> Tensor:
        call = functools.partial(self.transformer, x)
        return self.scheduler.step(next(call(u)[0] for u in [t.expand(1)]), t, x, return_dict=False)[0]

    return functools.reduce(one, self.scheduler.timesteps, x)


@pytest.mark.parametrize("loop", [recursive, reduced])
def test_loops_of_other_forms(case: Case, loop: Callable[..., Tensor]):
    class Helped(Requests):
        @torch.inference_mode()
        def __call__(self, seed: int = 0, num_inference_steps: int = T) -> Tensor:
            self.scheduler.set_timesteps(num_inference_steps)
            return loop(self, latent(seed))

    pipe = Helped(case.pipe.scheduler, case.model)
    with ertacache.apply(pipe, case.profile) as stats:
        assert torch.equal(pipe(0), case.cached[0]) and torch.equal(view(pipe)(1), case.cached[1])
        assert case.model.calls == 2 * COMPUTED and stats.outside == 0 and attachment_of(pipe).runs.all() == []


def test_a_loop_over_cells_of_a_notebook(case: Case):
    names = {"pipe": case.pipe, "x": latent(3), "T": T}
    step = "x = pipe.scheduler.step(pipe.transformer(x, t.expand(1))[0], t, x, return_dict=False)[0]"
    cells = ["pipe.scheduler.set_timesteps(T)", *(f"t = pipe.scheduler.timesteps[{i}]\n{step}" for i in range(T))]
    with case.applied() as stats:
        for cell in cells:
            exec(compile(cell, "cell", "exec"), names)
        assert torch.equal(names["x"], case.cached[3]) and stats.outside == 0


@pytest.mark.parametrize("at", [0, 2])
def test_a_debugger_that_calls_the_denoiser_changes_no_variable(case: Case, at: int):
    done: list[int] = []

    def loop() -> Tensor:
        x, i = latent(0), 0
        case.pipe.scheduler.set_timesteps(T)
        for i, t in enumerate(case.pipe.scheduler.timesteps):  # noqa: B007
            x = case.pipe.scheduler.step(case.model(x, t.expand(1))[0], t, x, return_dict=False)[0]
        return x if i == T - 1 else latent(9)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is loop.__code__ and frame.f_locals.get("t") is not None and frame.f_locals["i"] == at:
            if not done:
                done.append(1)
                case.check_direct()
        return trace

    before = sys.gettrace()
    with case.applied() as stats:
        sys.settrace(trace)
        try:
            final = loop()
        finally:
            sys.settrace(before)
        assert torch.equal(final, case.cached[0]) and (done, stats.outside) == ([1], 1)


def test_variables_are_neither_kept_nor_emptied(case: Case):
    class Large:
        pass

    def loop(seed: int) -> Tensor:
        given, large = locals(), Large()
        gone, x = weakref.ref(large), latent(seed)
        case.pipe.scheduler.set_timesteps(T)
        for i, t in enumerate(case.pipe.scheduler.timesteps):
            x = case.pipe.scheduler.step(case.model(x, t.expand(1))[0], t, x, return_dict=False)[0]
            if i == 2:
                given = dict(given)
                del large
        assert given["seed"] == seed
        return gone

    def plain_loop() -> None:
        large, x = Large(), latent(0)
        gone = weakref.ref(large)
        case.pipe.scheduler.set_timesteps(T)
        for t in case.pipe.scheduler.timesteps[:3]:
            x = case.pipe.scheduler.step(case.model(x, t.expand(1))[0], t, x, return_dict=False)[0]
        del large
        assert sys.gettrace() is not None or gone() is None

    with case.applied():
        loop(0)
        plain_loop()
