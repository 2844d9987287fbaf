"""What a profile did in the runs of a pipeline."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class RunStats:
    """Counters of the last run that made a step, and of all runs.

    Attributes:
        runs: number of runs that made a step since the profile was applied.
        computed: number of calls that ran the denoiser, per context.
        predicted: number of calls that were answered without it, per context.
        small: number of predicted calls that a small model was asked for, per context.
        extra_bytes: most bytes held for prediction between two steps on the device: kept outputs and inputs, and
            tensor coefficients.
        host_bytes: bytes of the host's memory that kept outputs and inputs are moved to, where that was asked for.
        reason: why the run, or what was left of it, was computed though a profile is on; None where it was not.
        advice: what a person should know of the run: that nothing was measured, and how to calibrate.
        outside: calls of the denoiser since the profile was applied that belonged to no run of it and were computed,
            as of another pipeline, or of a callback.
    """

    runs: int = 0
    computed: Counter[str] = field(default_factory=Counter[str])
    predicted: Counter[str] = field(default_factory=Counter[str])
    small: Counter[str] = field(default_factory=Counter[str])
    extra_bytes: int = 0
    host_bytes: int = 0
    reason: str | None = None
    advice: str | None = None
    outside: int = 0

    def show(self, run: "RunStats") -> None:
        """Take over the counters of one run, which has just made a step."""
        self.runs += run.runs
        run.runs = 0  # counted
        self.computed, self.predicted, self.small = run.computed, run.predicted, run.small
        self.extra_bytes, self.host_bytes = run.extra_bytes, run.host_bytes
        self.reason, self.advice = run.reason, run.advice


def of_one_run() -> RunStats:
    """Counters for a run that begins."""
    return RunStats(runs=1)
