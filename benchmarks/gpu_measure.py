"""What is measured of a pipeline: the plans of this package, the caches of others, and a calibration's price."""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from gpu_build import Built
from gpu_clock import Timing, bound_bytes, by_hand, prompts, timed

from ertacache.baselines.baseline import Baseline
from ertacache.baselines.db_cache import DBCache
from ertacache.baselines.first_block_cache import FirstBlockCache
from ertacache.baselines.mag_cache import MagCache
from ertacache.baselines.taylor_seer import TaylorSeer
from ertacache.evaluation.execute import execute
from ertacache.evaluation.match_cost import match_cost
from ertacache.profile.profile import Profile
from ertacache.runtime.watch import attentions_of

#: T/K of the plans that are measured.
PARTS = (2, 3)
#: Steps of the first run, whose time does not count: kernels are chosen, graphs made and memory reserved in it.
WARM_UP = 4
#: Loops that take less are run several times.
_SHORT, REPETITIONS = 15.0, 3
#: A calibration is run at this many steps, of which half are computed, on two prompts.
CALIBRATION_STEPS, CALIBRATION_PROMPTS = 8, ("a red ring on a table", "a green boat at night")
#: Of a calibration whose price is derived.
PUBLISHED_PROMPTS = 24

Row = dict[str, Any]


class OutOfTime(Exception):
    """What comes next does not fit into the time that is left."""


@dataclass
class Time:
    """The minutes that were given, and what has been learned about how long things take.

    Attributes:
        clock: seconds.
        end: when they are over.
    """

    clock: Callable[[], float]
    end: float

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - self.clock()

    def need(self, seconds: float, what: str) -> None:
        """Go on only where that much time is left.

        Raises:
            OutOfTime: naming both.
        """
        if seconds > self.left:
            raise OutOfTime(f"{what} needs about {seconds:.0f} s, and {max(self.left, 0):.0f} s are left")


def computed(T: int, part: int) -> int:
    """K of a plan at T/K = part."""
    return max(2, round(T / part))


def repetitions(loop: float, *, of_peers: bool = False) -> int:
    """How often a loop of so many seconds is run; that of another cache, of which there are many, once less."""
    return max(1, REPETITIONS - of_peers) if loop < _SHORT else 1


def warm_up(built: Built, seed: int) -> float:
    """Seconds of a step, from a run that does not count."""
    timing = timed(built, seed, num_inference_steps=WARM_UP)
    return statistics.median(timing.steps[WARM_UP // 2 :])


def plans(built: Built, step: float, left: Time, seed: int) -> Iterator[Row]:
    """The uncached run and those at T/2 and T/3 in turn, so that a drifting machine moves all of them; each row comes
    again, with medians over more runs, where loops are short.

    Args:
        step: seconds of a computed step.

    Raises:
        OutOfTime: the next run does not fit into the time that is left.
    """
    T = built.size.call["num_inference_steps"]
    names = {"uncached": T, **{f"T/{part}": computed(T, part) for part in PARTS}}
    profiles: dict[str, Profile | None] = {"uncached": None}
    found: dict[str, list[Timing]] = {name: [] for name in names}
    for _ in range(repetitions(T * step)):
        for name, K in names.items():
            left.need(K * step, f"a run of {K} computed steps")
            if name not in profiles:
                profiles[name] = by_hand(built, found["uncached"][0], K)
            found[name].append(timed(built, seed, profiles[name]))
            yield plan_row(name, profiles[name], found[name], found["uncached"])


def plan_row(name: str, profile: Profile | None, runs: list[Timing], uncached: list[Timing]) -> Row:
    """Medians over the runs of a plan; the ratio is that of each run to the uncached one before it."""
    T = len(runs[0].steps)
    K = T if profile is None else profile.schedule.K
    # The first step of a run also pays for what is made anew in each call.
    own = range(1, T) if profile is None else profile.schedule.computed_steps[1:]
    row: Row = {
        "plan": name, "T": T, "K": K, "cost": K / T, "calls": sum(runs[0].calls), "repetitions": len(runs),
        "seconds": statistics.median(run.seconds for run in runs),
        "step_seconds": statistics.median(run.steps[i] for run in runs for i in own),
        "peak_bytes": _peak(runs),
    }  # fmt: skip
    if profile is None:
        return row
    ratio = statistics.median(before.seconds / run.seconds for before, run in zip(uncached, runs, strict=False))
    predicted = statistics.median(run.steps[i] for run in runs for i in profile.schedule.predicted_steps)
    peak, before = row["peak_bytes"], _peak(uncached)
    return row | {
        "ratio": ratio, "share_of_ideal": ratio * K / T, "predicted_seconds": predicted,
        "predicted_share": predicted / row["step_seconds"], "held_bytes": runs[0].extra_bytes,
        "more_bytes": None if peak is None or before is None else peak - before,
        "bound_bytes": bound_bytes(uncached[0]),
    }  # fmt: skip


def _peak(runs: list[Timing]) -> int | None:
    """The least of the runs' peaks: the first one may hold what it makes for all."""
    return min((run.peak for run in runs if run.peak is not None), default=None)


def peers(T: int, part: int) -> tuple[Baseline, ...]:
    """Other caches at T/K = part. Where their schedule can be written down it is, so that nothing has to be searched:
    `part` − 1 steps are reused after every computed one."""
    return (
        MagCache(1.0, max_skip_steps=part - 1, retention_ratio=0.0, ratios=(1.0,) * T),
        TaylorSeer(interval=part, order=1, warmup=-1),
        DBCache(1.0, fn=1, bn=0, warmup=1, max_continuous=part - 1),
        FirstBlockCache(),
    )


def peer_rows(built: Built, uncached: Row, left: Time, seed: int) -> Iterator[Row]:
    """Every other cache at T/2 and T/3, with its cost counted: attentions that ran, as a share of the uncached run's.

    With random weights FirstBlockCache's threshold means nothing, so that it is turned until the cost is there.

    Args:
        uncached: the row of the uncached run.

    Raises:
        OutOfTime: the next run does not fit into the time that is left.
    """
    T = uncached["T"]
    tried: dict[Baseline, float] = {}

    def cost(method: Baseline) -> float:
        if method not in tried:
            left.need(uncached["seconds"], f"a run of {method.title}")
            tried[method] = run_peer(built, method, seed)["cost"]
        return tried[method]

    for part in PARTS:
        for method in peers(T, part):
            row: Row = {"plan": f"{method.title}, T/{part}", "T": T, "K": computed(T, part)}
            if reason := method.refusal(built.pipe, built.size.call):
                yield row | {"reason": reason}
                continue
            if isinstance(method, FirstBlockCache):
                method = match_cost(method, row["K"] / T, cost).method
            found: list[Row] = []
            for _ in range(repetitions(uncached["seconds"], of_peers=True)):
                left.need(uncached["seconds"] / part, f"a run of {method.title}")
                found.append(run_peer(built, method, seed))
            yield row | peer_figures(found, uncached)


def run_peer(built: Built, method: Baseline, seed: int) -> Row:
    """One run under another cache: seconds, peak, and cost."""
    cuda = built.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    _, executed = execute(built.pipe, method, prompts(seed), built.size.call, decode=False)
    whole = len(executed.attention_calls) * len(built.model.contexts) * len(list(attentions_of(built.pipe.transformer)))
    return {
        "seconds": executed.seconds,
        "cost": sum(executed.attention_calls) / whole,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


def peer_figures(found: list[Row], uncached: Row) -> Row:
    """Medians of a peer's runs, against the uncached row."""
    seconds = statistics.median(run["seconds"] for run in found)
    ratio, peak = uncached["seconds"] / seconds, found[-1]["peak_bytes"]
    before = uncached["peak_bytes"]
    return {
        "cost": found[0]["cost"], "repetitions": len(found), "seconds": seconds, "ratio": ratio,
        "share_of_ideal": ratio * found[0]["cost"], "peak_bytes": peak,
        "more_bytes": None if peak is None or before is None else peak - before,
    }  # fmt: skip


def calibration_row(built: Built, uncached: Row, seed: int) -> Row:
    """One calibration at few steps and what one of the default plan would take, by its count of uncached runs.

    The result is thrown away: on random weights it is worth nothing.
    """
    from ertacache.calibration.calibrate import calibrate

    T = min(CALIBRATION_STEPS, uncached["T"])
    call: Row = {**built.size.call, "num_inference_steps": T}
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that fewer steps do better, of which nothing follows here
        profile = calibrate(
            built.pipe, CALIBRATION_PROMPTS, compute_steps=T // 2, batch_size=1, seed=seed, show_progress=False, **call
        )
    seconds = time.perf_counter() - begun
    runs = profile.provenance.measured["uncached_runs"]
    K, whole = computed(uncached["T"], PARTS[0]), calibration_runs(uncached["T"])
    return {
        "plan": "calibration", "T": T, "K": T // 2, "prompts": len(CALIBRATION_PROMPTS), "seconds": seconds,
        "uncached_runs": runs,
        "derived": {
            "T": uncached["T"], "K": K, "prompts": PUBLISHED_PROMPTS, "uncached_runs": whole,
            "seconds": whole * uncached["seconds"],
        },
    }  # fmt: skip


def calibration_runs(T: int) -> float:
    """Uncached runs of one prompt that the default plan at T/2 takes on the usual number of prompts."""
    from ertacache.calibration.defaults import CHOOSE, HOLDOUT
    from ertacache.calibration.effort import loops_of_search, work_of
    from ertacache.calibration.first_steps import FirstSteps
    from ertacache.calibration.prompts import split_prompts

    parts = split_prompts([str(n) for n in range(PUBLISHED_PROMPTS)], CHOOSE, HOLDOUT, 0)
    loops = loops_of_search("balanced", directed=False, target=False)
    return work_of([(loops, computed(T, PARTS[0]))], parts, None, FirstSteps(steps=T)).runs
