"""`calibrate_split`: from two models and some prompts to the switch, priced from recordings, run, chosen, judged."""

import inspect
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

from ertacache.calibration.checkpoint import owned
from ertacache.calibration.checks import check_whole
from ertacache.calibration.defaults import CHOOSE, HOLDOUT
from ertacache.calibration.effort import duration, size_in_words
from ertacache.calibration.own_arguments import pipeline_arguments, refuse_mistaken
from ertacache.calibration.pipeline_run import check_batches, check_call
from ertacache.calibration.progress import run_progress, say
from ertacache.calibration.prompts import three_parts
from ertacache.calibration.target import check_target
from ertacache.errors import InvalidArgument, UnsupportedPipeline
from ertacache.pipelines.inputs import Inputs, check_inputs
from ertacache.pipelines.models import denoisers_of
from ertacache.profile.fingerprint import prompt_hash, storable
from ertacache.runtime.pair import check_pair
from ertacache.split.candidates import Budget, best_of, candidates_of, cheapest_that_keeps
from ertacache.split.effort import SplitWork, work_of
from ertacache.split.judged import judged_rows, row_of
from ertacache.split.matching import source_of
from ertacache.split.prices import price, switched
from ertacache.split.profile import SplitProfile, as_pipeline
from ertacache.split.recorded import Sized, SplitRuns

#: Which orders are candidates.
Orders = Literal["switch", "any"]
#: Candidates that are run on the prompts that choose.
TRIED = 3
#: Runs of the small model along which its response is measured, from evenly spaced steps of the large one's on.
PROBES = 3


def calibrate_split(
    large: Any,
    small: Any,
    prompts: Sequence[str] | None = None,
    *,
    cloud_budget: float | None = None,
    target_psnr: float | None = None,
    orders: Orders = "switch",
    tried: int = TRIED,
    probes: int = PROBES,
    choose: float = CHOOSE,
    holdout: float = HOLDOUT,
    seed: int = 0,
    batch_size: int | None = None,
    inputs: Sequence[Inputs] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    show_progress: bool = True,
    call: Mapping[str, Any] | None = None,
    **more: Any,
) -> SplitProfile:
    """Measure at which step a small model shall take over from a large one.

    On the recorded runs of the large model the small one is run on the same latents; how far their outputs are apart,
    carried to the end, prices every switch. The best few are run on prompts that choose, the best of these on others.

    Args:
        large, small: as for `split`; small may be a denoiser alone.
        prompts: three or more; one part is priced on, one chooses, one judges. None where `inputs` say it all.
        cloud_budget: the large model's operations that may be spent, as a share of a whole run of it, such as 0.4.
        target_psnr: instead, dB to the large model's pictures to keep with the fewest of its steps; as in `calibrate`.
        orders: "switch" gives the first steps to the large model. "any" also tries its steps in one piece elsewhere,
            and in several pieces: for `split` in one process, since each change hands the run over.
        tried: orders that are run on the prompts that choose; 1 trusts the prices.
        probes: runs of the small model by which its response to a deviation is measured, from evenly spaced steps on;
            the price of a switch at one of these is exact.
        choose, holdout, seed, batch_size, inputs, checkpoint, show_progress, call, more: as in `calibrate`.

    Returns:
        The profile, for `split(large, small, profile=...)` and `first_part(..., until=profile.switch)`.

    Raises:
        InvalidArgument: arguments that do not exist or cannot work, or a budget that leaves the large model no step.
        SplitMismatch: models with other latents or texts.
        UnsupportedPipeline: a solver that draws noise, clips or thresholds, or a pipeline that cannot be followed.
        CalibrationError: no switch keeps the target, the checkpoint is another calibration's, or runs end in NaN.
    """
    refuse_mistaken(large, {"seed": seed, "batch_size": batch_size, "choose": choose, "holdout": holdout})
    check_inputs(inputs)
    budget = Budget.of(cloud_budget, target_psnr)
    shared, own = pipeline_arguments(call, more), inspect.signature(calibrate_split).parameters
    check_call(large, shared, inputs or (), own=own, texts=prompts is not None)
    _check(orders, tried, probes, batch_size)
    check_models(large, small)
    shares, parts = three_parts(prompts, choose, holdout, seed, inputs, chosen="a switch")
    check_target(budget.target_psnr, len(parts.chosen.texts))
    check_batches(large, parts, batch_size, shared)
    with owned(checkpoint):
        runs = SplitRuns(large, small, prompts, batch_size=batch_size, call=shared, checkpoint=checkpoint, **shares)
        return _calibrated(runs, budget, orders, tried, probes, show_progress)


def _calibrated(
    runs: SplitRuns, budget: Budget, orders: Orders, tried: int, probes: int, show_progress: bool
) -> SplitProfile:
    """Say what it will take, measure, and say what came of it."""
    tell = partial(say, title="calibrate-split", show=show_progress)
    sizes = runs.sized(0), runs.sized(1)
    runs.ratio = ratio_of(sizes)
    budget.check(sizes[0].steps)
    places = probes_of(sizes[0].steps, probes)
    work = work_of(runs, sizes, budget, places, tried, any_order=orders == "any")
    tell(_announced(runs, work))
    with run_progress(show_progress, title="calibrate-split", expected=work.calls) as progress:
        runs.progress = progress
        profile = _measured(runs, sizes, budget, orders, tried, places)
    for line in profile.summary().splitlines():
        tell(line)
    return profile


def _check(orders: str, tried: int, probes: int, batch_size: int | None) -> None:
    if orders not in get_args(Orders):
        raise InvalidArgument(f"orders is {orders!r}; choose 'switch' or 'any'")
    check_whole("tried", tried, 1, "orders that are run on the prompts that choose")
    check_whole("probes", probes, 1, "runs of the small model by which its response is measured")
    if batch_size is not None:
        check_whole("batch_size", batch_size, 1, "prompts per pipeline call, or None for all at once")


def check_models(large: Any, small: Any) -> None:
    """Refuse two models that cannot share a run, or that are one.

    Raises:
        InvalidArgument: the small model is the large one.
        SplitMismatch: as `split`.
    """
    own = denoisers_of(large)
    if any(one is two for one in denoisers_of(as_pipeline(large, small)) for two in own):
        raise InvalidArgument(
            f"the small model is the very {type(own[0]).__name__} that the large one runs; give another"
        )
    check_pair(large, small, "model 1")


def ratio_of(sizes: tuple[Sized, Sized]) -> float:
    """Operations of a step of the small model by those of the large one.

    Raises:
        UnsupportedPipeline: none are counted.
    """
    if not sizes[0].operations or not sizes[1].operations:
        raise UnsupportedPipeline(
            "no operation of a step is counted: torch has no formula for what the denoiser does, and nothing says what "
            "a step costs on either side; use plain matrix products, convolutions and attention"
        )
    return sizes[1].operations / sizes[0].operations


def probes_of(steps: int, count: int) -> tuple[int, ...]:
    """At which steps the probes take over: 0 and on, evenly."""
    count = min(count, steps)
    return tuple(n * steps // count for n in range(count))


def _announced(runs: SplitRuns, work: SplitWork) -> str:
    fitted, chosen, judged = (len(part.texts) for part in runs.parts)
    return (
        f"{fitted} prompts to price on, {chosen} to choose and {judged} to judge on; at most {work.calls} pipeline "
        f"calls, the work of {work.large:.1f} runs of the large model and {work.small:.1f} of the small one for one "
        f"prompt: about {duration(work.seconds)} and {size_in_words(work.bytes)} on the disk"
    )


def _measured(
    runs: SplitRuns, sizes: tuple[Sized, Sized], budget: Budget, orders: Orders, tried: int, places: tuple[int, ...]
) -> SplitProfile:
    """Price, run, choose, judge."""
    grams = runs.grams(places, sizes[0].solver)
    if budget.target_psnr is not None:
        rows = cheapest_that_keeps(runs, grams, budget.target_psnr, any_order=orders == "any")
        models = rows[-1]["models"]
    else:
        plans = candidates_of(runs, grams, budget, any_order=orders == "any", count=tried)
        rows = [row_of(runs, grams, plan, "chosen") for plan in plans]
        models = best_of(rows)["models"]
    found = judged_rows(runs, grams, tuple(models))
    spent = runs.store.spent
    T, operations = runs.T, sizes[0].operations * float(runs.weights.sum())
    share = runs.share(models)
    return SplitProfile(
        models=tuple(models), asked=budget.asked(),
        operations={
            "large": share * operations, "small": (1 - share) * operations * runs.ratio, "large_alone": operations,
        },
        prices=tuple(round(one, 6) for one in price(grams, [switched(T, s) for s in range(T + 1)])),
        chosen_on={"prompts": len(runs.parts.chosen.texts), "rows": rows},
        judged={"prompts": len(runs.parts.judged.texts), "rows": found},
        made={
            "call": storable(runs.call), "seed": runs.seed, "orders": orders, "probes": list(places),
            "prompts": [len(part.texts) for part in runs.parts],
            "prompt_hash": prompt_hash([text for part in runs.parts for text in part.identities]),
            "large": source_of(runs.pipe), "small": source_of(as_pipeline(runs.pipe, runs.partner)),
            "runs": round(spent.runs, 6),
        },
    )  # fmt: skip
