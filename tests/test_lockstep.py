"""Calls of several prompts in lockstep: as plain runs, one at a time, and nothing left behind however they end."""

import _thread
import functools
import signal
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dummy_pipeline import PROMPTS, DummyPipeline, mixture_pipeline
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.lockstep import Lockstep, own_copy
from ertacache.calibration.method import Method
from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError, UnsupportedPipeline
from ertacache.runtime.hooks import attached
from ertacache.runtime.run import Controller, Run

T = 9
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": 5.0}
FITTED = Method("fitted", "guided", Schedule.from_mask("#.#.#..#."), levels=2, directions=1, ridge=1e-3)


class Meeting(Controller):
    """Hands over after every step, and notes in which order the calls go on."""

    replays, takes_turns = True, True

    def __init__(self, lockstep: Lockstep) -> None:
        self.lockstep, self.order = lockstep, list[tuple[int, int]]()

    def for_run(self, run: Run) -> Controller:
        return self

    def end_step(self, run: Run, x_next: Tensor) -> None:
        self.order.append((run.step, self.lockstep.seat))
        self.lockstep.meet(lambda: None)


def together(pipe: DummyPipeline, count: int) -> tuple[list[Tensor], Meeting]:
    lockstep = Lockstep(count)
    controller = Meeting(lockstep)
    with attached(pipe, controller, False):
        calls = [partial(call_pipeline, own_copy(pipe), batch, CALL, decode=False) for batch in batches(count)]
        return lockstep.run(calls), controller


def batches(count: int) -> list[Prompts]:
    return Prompts(tuple(PROMPTS[:count]), 5).batches(1)


def calibrator(pipe: DummyPipeline, **options: Any) -> Calibrator:
    return Calibrator(pipe, PROMPTS, **{"choose": 0.25, "seed": 5, "call": CALL, "batch_size": 1, **options})


def state(pipe: DummyPipeline) -> list[set[str]]:
    return [set(vars(part)) for part in (pipe, pipe.scheduler, pipe.transformer)]


@pytest.fixture
def clean() -> Iterator[DummyPipeline]:
    """A pipeline that must be as it was afterwards, bit for bit, and no thread may be left."""
    pipe, threads = mixture_pipeline(), set(threading.enumerate())
    plain, before = call_pipeline(pipe, batches(1)[0], CALL), state(pipe)
    yield pipe
    assert set(threading.enumerate()) == threads
    pipe.fail_at, pipe.transformer.made.pause = None, lambda: None
    assert state(pipe) == before and torch.equal(call_pipeline(pipe, batches(1)[0], CALL), plain)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_plain_runs_are_what_they_are_one_after_another(count: int, clean: DummyPipeline):
    expected = [call_pipeline(clean, batch, CALL, decode=False) for batch in batches(count)]
    found, controller = together(clean, count)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert controller.order == [(step, seat) for step in range(T) for seat in range(count)]


def test_denoiser_calls_never_overlap(clean: DummyPipeline):
    made = clean.transformer.made
    made.pause = lambda: threading.Event().wait(1e-4)  # lets any other thread run that can
    run = calibrator(clean)
    run.solve(FITTED)
    assert made.most == 1 and set(made.sizes) == {1}


@pytest.mark.parametrize("step", [0, 1, 40, 77], ids=str)
@pytest.mark.parametrize("error", [ConnectionError("gone"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_the_first_error_comes_out_and_ends_all_calls(step: int, error: BaseException, clean: DummyPipeline):
    run, made = calibrator(clean), clean.transformer.made
    assert run.T == T
    begun = len(made.sizes)

    def fail() -> None:
        if len(made.sizes) == begun + 1 + step:
            raise error

    made.pause = fail
    with pytest.raises(type(error)) as caught:
        run.solve(FITTED)
    assert caught.value is error and made.inside == 0
    assert len(made.sizes) == begun + 1 + step  # no call goes on to its next turn


@pytest.fixture
def interruptible() -> Iterator[None]:
    """The handler that Python has by default; a shell starts its background jobs with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_of_the_thread_that_waits_ends_all_calls(clean: DummyPipeline):
    run, made = calibrator(clean), clean.transformer.made
    assert run.T == T
    begun = len(made.sizes)
    made.pause = lambda: _thread.interrupt_main() if len(made.sizes) == begun + 9 else None
    with pytest.raises(KeyboardInterrupt):
        run.solve(FITTED)
    made.pause = lambda: None
    assert len(run.solve(FITTED).weights) == 5  # it can be asked again


def test_a_call_that_was_cut_off_is_not_stored(clean: DummyPipeline):
    run = calibrator(clean)
    assert run.T == T
    clean.fail_at = clean.calls + 3
    with pytest.raises(ConnectionError):
        run.solve(FITTED)
    clean.fail_at = None
    found, expected = run.solve(FITTED), calibrator(mixture_pipeline()).solve(FITTED)
    assert all(torch.equal(found.weights[key], weights) for key, weights in expected.weights.items())
    assert run.store.spent.runs == pytest.approx(6 * (1 + 1))


class Uneven(DummyPipeline):
    """More steps for one class of prompts."""

    more = 2

    @functools.wraps(DummyPipeline.__call__)
    def __call__(self, prompt: Any, num_inference_steps: int = 30, **options: Any) -> Any:
        return super().__call__(prompt, num_inference_steps + self.more * ("class 3" in prompt[0]), **options)


@pytest.mark.parametrize("more", [2, -2])
def test_prompts_of_different_numbers_of_steps_are_refused(more: int):
    pipe = Uneven(mixture_pipeline().transformer, (4, 4), branches=True)
    pipe.more = more
    with pytest.raises(UnsupportedPipeline, match="different numbers of steps, which no schedule can serve"):
        _ = calibrator(pipe).reference


class Unlike(DummyPipeline):
    """Another argument for one class of prompts."""

    other: dict[str, Any]

    @functools.wraps(DummyPipeline.__call__)
    def __call__(self, prompt: Any, **options: Any) -> Any:
        unlike = "class 3" in prompt[0]
        self.branches = not unlike or "single" not in self.other
        options |= {name: value for name, value in self.other.items() if unlike and name != "single"}
        return super().__call__(prompt, **options)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"guidance_scale": 3.0}, r"have different guidance weights \(5 and 3\), which no plan can serve alike"),
        (
            {"sigmas": [(1 - n / T) ** 2 for n in range(T)]},
            "are on different time grids, which no plan can serve",
        ),
        ({"single": True}, r"make different denoiser calls \({'cond': 1, 'uncond': 1} and {'cond': 1}\), which no"),
    ],
    ids=["guidance", "grid", "calls"],
)
def test_prompts_that_run_otherwise_than_the_first_are_refused(other: dict[str, Any], message: str):
    pipe = Unlike(mixture_pipeline().transformer, (4, 4), branches=True)
    pipe.other = other
    with pytest.raises(UnsupportedPipeline, match=message):
        _ = calibrator(pipe).reference


def test_autocast_of_the_caller_holds_in_every_call(clean: DummyPipeline):
    run, seen = calibrator(clean), list[Any]()
    assert run.T == T

    def note() -> None:
        inside = threading.current_thread() is not threading.main_thread()
        seen.append((inside, torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))

    clean.transformer.made.pause = note
    with torch.autocast("cpu", torch.float16):
        run.solve(FITTED)
    assert set(seen) == {(True, True, torch.float16)}
    seen.clear()
    run.solve(Method("fitted", "guided", FITTED.schedule, levels=1, ridge=1e-3))
    assert {enabled for _, enabled, _ in seen} == {False}


def test_the_first_call_leaves_before_the_others_meet():
    lockstep = Lockstep(2)
    with pytest.raises(UnsupportedPipeline, match="make different numbers of steps"):
        lockstep.run([lambda: None, lambda: lockstep.meet(lambda: None)])


def test_a_pipeline_that_cannot_be_copied_says_what_to_do():
    class Held(DummyPipeline):
        def __copy__(self) -> Any:
            raise TypeError("cannot pickle this")

    pipe = Held(mixture_pipeline().transformer, (4, 4), branches=True)
    with pytest.raises(CalibrationError, match=r"Held cannot be copied \(cannot pickle this\).*\(batch_size=None\)"):
        own_copy(pipe)
    assert len(calibrator(pipe, batch_size=None).solve(FITTED).weights) == 5


def test_a_scheduler_that_leads_back_to_one_says_what_to_do():
    pipe = mixture_pipeline()
    plain = pipe.scheduler.step
    pipe.scheduler.step = functools.wraps(plain)(lambda *args, **options: plain(*args, **options))
    message = r"step of FlowMatchEulerDiscreteScheduler was replaced by a function .*\(batch_size=None\)"
    with pytest.raises(CalibrationError, match=message):
        calibrator(pipe).solve(FITTED)
    assert len(calibrator(pipe, batch_size=None).solve(FITTED).weights) == 5


#: Steps that the closed loop of each method computes.
COMPUTES: dict[str, tuple[dict[str, Any], int]] = {
    "trajectory": ({"basis": "fitted", "levels": 2, "directions": 1, "aim": "trajectory"}, 4),
    "reuse": ({"basis": "residual", "levels": 0}, 4),
    "step": ({"basis": "fitted", "levels": 2, "aim": "step"}, T),
    "rectifier": ({"basis": "residual", "levels": 0, "rectifier": "scalar"}, T),
    "timesteps": ({"basis": "residual", "levels": 0, "strength": 0.5}, T),
    "policy": ({"basis": "residual", "levels": 0, "schedule": None, "threshold": 0.3}, T),
    "output": ({"basis": "fitted", "site": "output", "levels": 2}, T),
}


@pytest.mark.parametrize("batch_size", [None, 1])
@pytest.mark.parametrize("name", COMPUTES)
def test_a_predicted_step_is_computed_where_its_output_is_read(name: str, batch_size: int | None):
    choices, steps = COMPUTES[name]
    pipe = mixture_pipeline()
    run, made = calibrator(pipe, batch_size=batch_size), pipe.transformer.made
    method = Method(**{"site": "guided", "schedule": FITTED.schedule, **choices})  # pyright: ignore[reportArgumentType]
    assert (run.T, made.samples) == (T, 2 * 6 * T)
    run.solve(method)
    assert made.samples == 2 * 6 * (T + steps)
    assert run.store.spent.runs == pytest.approx(6 * (1 + steps / T))
