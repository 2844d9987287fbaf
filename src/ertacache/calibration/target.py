"""The number of steps that a wanted quality or time leaves, found by measuring."""

import math
from collections.abc import Callable

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate
from ertacache.calibration.held_out import Clocked
from ertacache.calibration.recorder import UNCACHED
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.metrics import lower_bound
from ertacache.runtime.watch import now


def fewest_steps(calibrator: Calibrator, psnr: float, plan_of: Callable[[int], Candidate]) -> int:
    """The fewest steps with which a plan keeps a PSNR, by bisection, which takes more steps to be no worse.

    It keeps it where the one-sided lower 95 % confidence bound of the mean on the prompts that choose reaches it.

    Args:
        psnr: in dB.
        plan_of: gives the plan of K steps with what those prompts say of it.

    Raises:
        CalibrationError: not even one spared step does.
    """
    low, high = 1, calibrator.T
    while high - low > 1:
        K = (low + high) // 2
        low, high = (low, K) if reaches(plan_of(K), psnr) else (K, high)
    if high == calibrator.T:
        raise CalibrationError(
            f"no plan of fewer than {calibrator.T} steps keeps {psnr:g} dB on {len(calibrator.parts.chosen.texts)} "
            "prompts with 95 % confidence; ask for less, or calibrate with more prompts"
        )
    return high


def check_target(psnr: float | None, chosen: int) -> None:
    """Refuse a quality that no prompts could be seen to keep, before anything runs.

    Args:
        psnr: in dB, None where it is not asked for. chosen: how many prompts choose.

    Raises:
        InvalidArgument: fewer than two, which give no confidence bound.
    """
    if psnr is not None and chosen < 2:
        raise InvalidArgument(
            f"target_psnr is {psnr:g}, and {chosen} prompt(s) to choose on give no confidence bound; give 12 prompts "
            "or more, or a larger choose"
        )


def reaches(candidate: Candidate, psnr: float) -> bool:
    """Whether the prompts that choose leave no doubt that a plan keeps a PSNR, in dB."""
    values = candidate.psnr
    return len(values) == len(candidate.errors) and lower_bound(values) >= psnr


def steps_within(calibrator: Calibrator, seconds: float) -> int:
    """The most steps with which a call for one prompt takes no longer; one uncached call is made and timed.

    Where further denoisers take over, as many steps are left to them, which a schedule may lack.

    Raises:
        InvalidArgument: two steps already take longer, naming how long.
    """

    def run() -> dict[str, float]:
        clocked, start = Clocked(), now()
        calibrator.run(calibrator.parts.fitted.first(1), clocked, UNCACHED, decode=True)
        return {"loop": clocked.seconds, "call": now() - start}

    T, found = calibrator.T, calibrator.store.get("timed call", run)
    step = found["loop"] / max(1, T - 1)
    rest = found["call"] - step * T
    if (K := math.floor((seconds - rest) / step)) < 2:
        raise InvalidArgument(
            f"max_seconds is {seconds:g}, and two of {T} steps take {rest + 2 * step:.3g} s here with text encoder and "
            f"decoder; give more, all {T} take {found['call']:.3g} s"
        )
    return T if K >= T else max(2, K - len(calibrator.reference.boundaries))
