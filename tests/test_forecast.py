"""The controller of methods that forecast whole steps: where it computes, what a forecast is given, what is copied."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ertacache.baselines.baseline import Bench
from ertacache.baselines.forecast import Forecast, Forecasting, Kept, Place, recorded
from ertacache.calibration.pipeline_run import Final, run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.core.schedule import Schedule
from ertacache.errors import CacheConflict
from ertacache.pipelines.block_stack import BlockStack
from ertacache.pipelines.models import denoiser_of, family_of
from pipelines import CALL, CFG_CALL, PROMPTS, VIDEO_CALL, cogvideox, flux, wan

PLACES: list[Place] = ["solver", "output", "features"]
MASK = "##.#....#."
FIRST = Prompts(tuple(PROMPTS[:1]), 0)
#: pipeline, call, blocks, calls per step
ALL = [(flux, CALL, 1), (lambda: flux(False), CFG_CALL, 2), (wan, VIDEO_CALL, 2), (cogvideox, VIDEO_CALL, 1)]
IDS = ["flux", "flux-cfg", "wan", "cogvideox"]


class Again(Forecast):
    """The last value; notes the steps that it was given and asked for."""

    def __init__(self) -> None:
        self.pushed: list[int] = []
        self.asked: list[int] = []

    def push(self, step: int, value: Tensor, x: Tensor) -> None:
        self.pushed.append(step)
        self.value = value

    def predict(self, step: int, x: Tensor) -> Tensor:
        self.asked.append(step)
        return self.value


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("build", "call", "calls"), ALL, ids=IDS)
def test_it_computes_the_steps_of_the_schedule_and_asks_for_the_others(build, call, calls, place):
    pipe, streams, schedule = build(), list[Again](), Schedule.from_mask(MASK)
    seen: list[int] = []
    pipe.transformer.proj_out.register_forward_hook(lambda *_: seen.append(1))
    controller = Forecasting(place, lambda T: schedule, lambda run: streams.append(Again()) or streams[-1])
    run_pipeline(pipe, FIRST, controller, call, hidden=place == "features")
    assert len(streams) == (1 if place == "solver" else calls)
    for stream in streams:
        assert tuple(stream.pushed) == schedule.computed_steps
        assert tuple(stream.asked) == schedule.predicted_steps
    assert len(seen) == calls * (10 if place == "features" else schedule.K)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("build", "call", "calls"), ALL, ids=IDS)
def test_true_values_in_place_of_a_forecast_change_nothing(build, call, calls, place):
    """Whatever is forecast goes to the very place that it was taken from."""
    pipe, truth = build(), Final()
    run_pipeline(pipe, FIRST, truth, call)
    streams = next(recorded(Bench(pipe, call, FIRST), 1, place))
    assert len(streams) == (1 if place == "solver" else calls)
    order = iter(streams)

    class Known(Forecast):
        def __init__(self) -> None:
            self.kept = next(order)

        def push(self, step: int, value: Tensor, x: Tensor) -> None:
            assert torch.equal(value.double(), self.kept.values[step])

        def predict(self, step: int, x: Tensor) -> Tensor:
            torch.testing.assert_close(x.double(), self.kept.inputs[step], atol=1e-4, rtol=1e-4)
            return self.kept.values[step].float()

    again = Final(Forecasting(place, lambda T: Schedule.from_mask("#.........").with_steps([]), lambda run: Known()))
    run_pipeline(pipe, FIRST, again, call, hidden=place == "features")
    torch.testing.assert_close(again.latents, truth.latents, atol=1e-4, rtol=1e-4)


def test_the_uncached_run_is_recorded_prompt_by_prompt():
    pipe = flux()
    final = Final(keep_outputs=True)
    run_pipeline(pipe, FIRST, final, CALL)
    both = list(recorded(Bench(pipe, CALL, Prompts(tuple(PROMPTS), 0)), 2, "solver"))
    assert [len(streams) for streams in both] == [1, 1]
    torch.testing.assert_close(torch.stack(both[0][0].values).float(), torch.stack(final.outputs), atol=0, rtol=0)
    with pytest.raises(NotImplementedError, match="every step of the uncached run is computed"):
        Kept().predict(0, torch.zeros(1))


@pytest.mark.parametrize("change", ["batch", "denoiser"])
def test_another_batch_or_denoiser_begins_anew(change):
    made: list[Again] = []
    schedule = Schedule.from_mask("#...")
    run: Any = SimpleNamespace(T=4, step=0, denoiser=0, stack=None, contexts=["cond"])
    controller = Forecasting("output", lambda T: schedule, lambda run: made.append(Again()) or made[-1]).for_run(run)
    sizes = [2, 2, 1, 1] if change == "batch" else [2] * 4
    for run.step, size in enumerate(sizes):
        run.denoiser = int(change == "denoiser" and run.step > 1)
        x = torch.full((size, 3), float(run.step))
        controller.call(run, "cond", x, lambda x=x: 2 * x)
    assert [(stream.pushed, stream.asked) for stream in made] == [([0], [1]), ([2], [3])]


def test_the_entry_of_the_blocks_is_known_while_they_are_entered_only():
    denoiser = denoiser_of(flux())
    with pytest.raises(CacheConflict, match="the block stack has an entry only while its first block is entered"):
        _ = BlockStack(denoiser, family_of(denoiser)).entry
