"""Requests that share a denoiser, each with a scheduler of its own: in turns, in threads, in tasks; and copies."""

import asyncio
import copy
import functools
import itertools
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import pytest
import torch
from torch import Tensor

import ertacache.runtime.apply as ertacache
from ertacache.errors import UnsupportedPipeline
from ertacache.runtime.hooks import attachment_of
from small_requests import COMPUTED, SITES, Case, T, by_hand, latent, view

WAIT = 60


@pytest.fixture(params=SITES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def fast_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(*jobs: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result(WAIT) for future in [pool.submit(job) for job in jobs]]


@pytest.mark.parametrize("seed", range(10))
def test_generators_advanced_in_turns(case: Case, seed: int):
    turns, finals = random.Random(seed), dict[int, Tensor]()
    with case.applied() as stats:
        loops = {n: by_hand(case.model, copy.deepcopy(case.pipe.scheduler), n) for n in range(3)}
        while loops:
            n = turns.choice(list(loops))
            try:
                finals[n] = next(loops[n])
            except StopIteration:
                del loops[n]
        assert all(torch.equal(finals[n], case.cached[n]) for n in range(3))
        assert (case.model.calls, stats.outside, stats.runs) == (3 * COMPUTED, 0, 3)


@pytest.mark.parametrize("seed", range(10))
def test_requests_from_the_same_noise_in_one_function(case: Case, seed: int):
    turns, seeds = random.Random(seed), (0, 0, 1)
    with case.applied() as stats:
        schedulers = [copy.deepcopy(case.pipe.scheduler) for _ in seeds]
        xs, outputs, steps = [latent(n) for n in seeds], [None, None, None], [0, 0, 0]
        for scheduler in schedulers:
            scheduler.set_timesteps(T)
        while min(steps) < T:
            n = turns.choice([n for n in range(3) if steps[n] < T])
            t = schedulers[n].timesteps[steps[n]]
            if outputs[n] is None:
                outputs[n] = case.model(xs[n], t.expand(1))[0]
            else:
                xs[n] = schedulers[n].step(outputs[n], t, xs[n], return_dict=False)[0]
                outputs[n], steps[n] = None, steps[n] + 1
        assert all(torch.equal(x, case.cached[n]) for x, n in zip(xs, seeds, strict=True))
        assert (case.model.calls, stats.outside) == (3 * COMPUTED, 0)


@pytest.mark.parametrize("how", ["closed", "dropped", "raised"])
def test_a_generator_that_is_left_ends_its_run(case: Case, how: str):
    with case.applied():
        loop = by_hand(case.model, case.pipe.scheduler, 0)
        for _ in range(5):
            next(loop)
        assert len(attachment_of(case.pipe).runs.all()) == 1
        if how == "closed":
            loop.close()
        elif how == "raised":
            with pytest.raises(ConnectionError):
                loop.throw(ConnectionError())
        del loop
        assert attachment_of(case.pipe).runs.all() == []
        case.check_direct()


def test_pipelines_in_threads(case: Case, fast_switches: None):
    with case.applied() as stats:
        for _ in range(10):
            found = in_threads(*(functools.partial(view(case.pipe), n) for n in range(4)))
            assert all(torch.equal(found[n], case.cached[n]) for n in range(4))
        assert (case.model.calls, stats.outside, stats.runs) == (40 * COMPUTED, 0, 40)


@pytest.mark.parametrize("apart", ["call", "step", "call and step", "all"])
def test_tasks_that_hand_their_work_to_threads(case: Case, apart: str):
    @torch.no_grad()
    def call(x: Tensor, t: Tensor) -> Tensor:
        return case.model(x, t.expand(1))[0]

    @torch.no_grad()
    def both(scheduler: Any, x: Tensor, t: Tensor) -> Any:
        return scheduler.step(case.model(x, t.expand(1))[0], t, x, return_dict=False)

    async def request(scheduler: Any, n: int) -> Tensor:
        x = latent(n)
        if apart == "all":
            await asyncio.to_thread(scheduler.set_timesteps, T)
        else:
            scheduler.set_timesteps(T)
        for t in scheduler.timesteps:
            if apart in ("step", "all"):
                x = (await asyncio.to_thread(both, scheduler, x, t))[0]
                continue
            output = await asyncio.to_thread(call, x, t)
            step = functools.partial(scheduler.step, output, t, x, return_dict=False)
            x = (await asyncio.to_thread(step) if apart == "call and step" else step())[0]
        return x

    async def requests() -> list[Tensor]:
        return await asyncio.gather(*(request(copy.deepcopy(case.pipe.scheduler), n) for n in range(3)))

    with case.applied() as stats:
        found = asyncio.run(requests())
        assert all(torch.equal(found[n], case.cached[n]) for n in range(3))
        assert (case.model.calls, stats.outside) == (3 * COMPUTED, 0)


def test_each_step_in_another_worker(case: Case):
    """Workers with a loop of their own, as an inference server has."""

    def worker(jobs: Any, done: Any) -> None:
        for job in iter(jobs.get, None):
            done.put(job())

    @torch.no_grad()
    def one(scheduler: Any, x: Tensor, t: Tensor) -> Tensor:
        return scheduler.step(case.model(x, t.expand(1))[0], t, x, return_dict=False)[0]

    queues, done = [Queue[Any]() for _ in range(3)], Queue[Any]()
    threads = [threading.Thread(target=worker, args=(queue, done), daemon=True) for queue in queues]
    for thread in threads:
        thread.start()
    turns = itertools.cycle(queues)

    def ask(job: Callable[[], Any]) -> Any:
        next(turns).put(job)
        return done.get(timeout=WAIT)

    with case.applied() as stats:
        for n in range(3):
            scheduler, x = copy.deepcopy(case.pipe.scheduler), latent(n)
            ask(functools.partial(scheduler.set_timesteps, T))
            for t in scheduler.timesteps:
                x = ask(functools.partial(one, scheduler, x, t))
            assert torch.equal(x, case.cached[n])
        assert (case.model.calls, stats.outside) == (3 * COMPUTED, 0)
    for queue in queues:
        queue.put(None)


class Wrapper:
    """Around a scheduler, as diffusers' guide for servers has it."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)


def test_a_wrapped_copy_whose_timesteps_were_set_before(case: Case):
    def request() -> Any:
        own = view(case.pipe)
        own.scheduler.set_timesteps(T)
        own.scheduler = Wrapper(own.scheduler)
        return own

    with case.applied() as stats:
        for _ in range(3):
            found = in_threads(*(functools.partial(request(), n) for n in range(3)))
            assert all(torch.equal(found[n], case.cached[n]) for n in range(3))
        assert stats.outside == 0


def test_one_pipeline_object_in_two_threads_is_refused(case: Case):
    found: list[Any] = []

    def second() -> None:
        with pytest.raises(UnsupportedPipeline, match="diffusers cannot make two calls of one pipeline object at once"):
            case.pipe(1)
        found.append("refused")

    def callback(pipe: Any, i: int, t: Tensor, x: Tensor) -> None:
        if i == 2:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join(WAIT)

    with case.applied():
        assert torch.equal(case.pipe(0, callback=callback), case.cached[0]) and found == ["refused"]
        assert torch.equal(case.pipe(1), case.cached[1])


def test_a_copy_of_the_whole_pipeline_is_plain(case: Case):
    with case.applied() as stats:
        copied = copy.deepcopy(case.pipe)
        assert torch.equal(copied(0), case.plain[0]) and (stats.runs, stats.outside) == (0, 0)
        with pytest.warns(UserWarning, match="nothing to disable"):
            ertacache.disable(copied)
        with ertacache.apply(copied, case.profile) as own:
            assert torch.equal(copied(1), case.cached[1]) and torch.equal(case.pipe(2), case.cached[2])
            assert (stats.runs, own.runs) == (1, 1)
        assert torch.equal(copied(0), case.plain[0]) and torch.equal(case.pipe(0), case.cached[0])


@pytest.mark.parametrize("then", ["", "interrupt", "raise"])
def test_disable_in_a_callback_waits_for_the_end_of_the_run(case: Case, then: str):
    def callback(pipe: Any, i: int, t: Tensor, x: Tensor) -> None:
        if i in (2, 3):
            ertacache.disable(pipe)
        pipe._interrupt = i == 3 and then == "interrupt"
        if i == 3 and then == "raise":
            raise ConnectionError

    ertacache.enable(case.pipe, case.profile)
    try:
        assert torch.equal(case.pipe(0, callback=callback), case.cached[0]) or then
    except ConnectionError:
        pass
    assert attachment_of(case.pipe) is None and torch.equal(case.pipe(0), case.plain[0])
    with case.applied():
        assert torch.equal(case.pipe(0), case.cached[0])


def test_no_run_begins_once_the_profile_is_to_come_off(case: Case):
    """Else a server whose requests overlap would never be rid of it."""
    late = list[Tensor]()

    def callback(pipe: Any, i: int, t: Tensor, x: Tensor) -> None:
        if i == 2:
            ertacache.disable(pipe)
            late.append(view(case.pipe)(1))

    ertacache.enable(case.pipe, case.profile)
    assert torch.equal(case.pipe(0, callback=callback), case.cached[0])
    assert torch.equal(late[0], case.plain[1]) and attachment_of(case.pipe) is None


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_disable_between_a_call_and_its_step_by_hand_waits_too(case: Case, step: int):
    def disabling(x: Tensor, t: Tensor) -> Any:
        output = case.model(x, t)
        if case.pipe.scheduler.step_index == (step or None):
            in_threads(functools.partial(ertacache.disable, case.pipe))
        return output

    ertacache.enable(case.pipe, case.profile)
    assert torch.equal(list(by_hand(disabling, case.pipe.scheduler, 0))[-1], case.cached[0])
    assert attachment_of(case.pipe) is None and torch.equal(case.pipe(0), case.plain[0])
