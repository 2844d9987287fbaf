"""What a correction of a quantised denoiser costs on a device: every step computed, with and without one."""

import statistics
from collections.abc import Iterator
from dataclasses import replace

import torch
from gpu_build import Built
from gpu_clock import Timing, by_hand, timed
from gpu_measure import Row, Time, plan_row, repetitions

from ertacache.core.compensation import Compensation
from ertacache.profile.profile import Profile


def corrected_by_hand(built: Built, uncached: Timing) -> Profile:
    """A gain and a bias for each channel at every step, without calibration: it costs what a calibrated one does."""
    T = len(uncached.steps)
    profile = by_hand(built, uncached, T)
    facts = profile.provenance
    channels = facts.latent_shape[facts.channel_axis - (facts.channel_axis > 0)]
    gain = torch.full((T, channels), 0.99)
    return replace(profile, compensation=Compensation(gain, torch.zeros_like(gain), torch.full_like(gain, 0.01)))


def corrections(built: Built, step: float, left: Time, seed: int) -> Iterator[Row]:
    """The uncached run and the corrected one in turn; each row comes again, with medians over more runs, where loops
    are short.

    Args:
        step: seconds of a step.

    Raises:
        OutOfTime: the next run does not fit into the time that is left.
    """
    T = built.size.call["num_inference_steps"]
    plain, corrected, profile = list[Timing](), list[Timing](), None
    for _ in range(repetitions(T * step)):
        left.need(T * step, f"a run of {T} computed steps")
        plain.append(timed(built, seed))
        yield plan_row("uncached", None, plain, plain)
        left.need(T * step, f"a corrected run of {T} computed steps")
        profile = profile or corrected_by_hand(built, plain[0])
        corrected.append(timed(built, seed, profile))
        yield corrected_row(corrected, plain)


def corrected_row(runs: list[Timing], plain: list[Timing]) -> Row:
    """Medians over the corrected runs; the ratio is that of each to the uncached one before it."""
    row, before = plan_row("corrected", None, runs, runs), plan_row("uncached", None, plain, plain)
    ratio = statistics.median(a.seconds / b.seconds for a, b in zip(plain, runs, strict=True))
    peaks = row["peak_bytes"], before["peak_bytes"]
    return row | {
        "ratio": ratio, "share_of_ideal": ratio, "correction_share": row["step_seconds"] / before["step_seconds"] - 1,
        "held_bytes": runs[0].extra_bytes, "more_bytes": None if None in peaks else peaks[0] - peaks[1],
    }  # fmt: skip
