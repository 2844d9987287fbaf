"""Step caching without calibration: evenly spaced computed steps, and between them a line in σ that the run damps.

    v̂_i = v_1 + m · (σ_i − σ_1)/(σ_1 − σ_2) · (v_1 − v_2),        m = LIMIT − s, cut to 0..1,
    s = ‖v_1 − v_2‖/‖v_2‖ · (σ_n − σ_1)/(σ_1 − σ_2)

v_1 and v_2 are what the solver received at the last two computed steps, n is the next one. s is the stiffness that the
run shows: how much the output would change until step n, if it went on as between the last two. Where that is
little the whole line is taken (m = 1), where it is more than the output itself the last output is repeated (m = 0).
The norms are those of each batch entry by itself and stay on the device: nothing is copied to the host, the cost is
known before the run, and an entry gets the same picture in every batch.
"""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ertacache.core.precision import widen
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument

#: Stiffness at which nothing of the line is left. Chosen on calibration prompts by benchmarks/uncalibrated.py.
LIMIT = 1.2
#: Below these steps a run has nothing to save: first and last are computed.
FEWEST_STEPS = 4


def check_speedup(speedup: object) -> float:
    """A speed-up that can be asked for, before the number of steps is known.

    Raises:
        InvalidArgument: no finite number above 1.
    """
    if isinstance(speedup, bool) or not isinstance(speedup, int | float) or not 1 < speedup < math.inf:
        raise InvalidArgument(
            f"speedup is {reprlib.repr(speedup)}; give a number above 1, such as 2.0, which computes half of the steps"
        )
    return float(speedup)


def nothing_to_save(T: int, speedup: float) -> str | None:
    """Why all of T steps are computed; None where some are predicted."""
    if T < FEWEST_STEPS:
        return f"a run of {T} steps has nothing to save: the first and the last step are computed"
    if round(T / speedup) == T:
        return f"speedup={speedup:g} of {T} steps computes all of them; ask for {T / (T - 1):.3g} or more"
    return None


def schedule_for(T: int, speedup: float, boundaries: Sequence[int] = ()) -> Schedule:
    """K = T / speedup of T steps, rounded, evenly spaced; all of them where there is `nothing_to_save`.

    Args:
        boundaries: steps at which another denoiser takes over, as far as they are known; they are computed too.

    Raises:
        InvalidArgument: as `check_speedup`, or a speed-up that would leave fewer than 2 computed steps.
    """
    speedup = check_speedup(speedup)
    if nothing_to_save(T, speedup) is not None:
        return Schedule.all_computed(T)
    if speedup > T / 2:
        raise InvalidArgument(
            f"speedup={speedup:g} of {T} steps would compute fewer than 2, and the first and the last step are "
            f"computed; ask for {T / 2:g} at most, or use more steps"
        )
    return Schedule.uniform(T, round(T / speedup)).with_steps(boundaries)


@dataclass(frozen=True, eq=False)
class DampedLine:
    """The formula on top, for one grid and schedule.

    Args:
        sigmas: [T+1] the solver's own grid.
        limit: see `LIMIT`; 0 repeats the last output, infinity takes the whole line.
    """

    sigmas: Tensor
    schedule: Schedule
    limit: float = LIMIT

    def __call__(self, i: int, computed: Sequence[int], outputs: Sequence[Tensor]) -> Tensor:
        """The prediction [B, *] of step i, in the dtype of the outputs (computed in float32, or in their float64).

        Args:
            computed: the last two computed steps, newest first; only one where there is no other. They need not be
                of the schedule: a run that starts late, or that another denoiser takes over, has others.
            outputs: [B, *] what the solver received there.
        """
        if len(computed) < 2:
            return outputs[0]
        ends = (i, next((j for j in self.schedule.computed_steps if j > i), self.schedule.T))
        newest, older = (float(self.sigmas[step]) for step in computed[:2])
        here, there = ((float(self.sigmas[step]) - newest) / (newest - older) for step in ends)
        v1, v2 = (widen(output) for output in outputs[:2])
        return (v1 + damping(v1, v2, there, self.limit) * here * (v1 - v2)).to(outputs[0].dtype)


def damping(newest: Tensor, older: Tensor, ahead: float, limit: float = LIMIT) -> Tensor:
    """m, one for each batch entry: [B, 1, ...] for outputs [B, *]; 0 where it cannot be told (0 / 0, NaN).

    Args:
        ahead: length of the gap that is predicted as a multiple of the gap between the two outputs.
    """
    change = (newest - older).flatten(1).norm(dim=1) / older.flatten(1).norm(dim=1)
    m = (limit - change * ahead).clamp(0, 1).nan_to_num(0.0)
    return m.view(-1, *(1,) * (newest.ndim - 1))


def nothing_measured(schedule: Schedule) -> str:
    """What a person should know of such a run: that no figure stands behind it, and how to get one."""
    return (
        f"computed {schedule.K} of {schedule.T} steps without calibration: nothing was measured on this pipeline. To "
        f"know the loss, and to have less of it: profile = ertacache.calibrate(pipe, prompts, "
        f"compute_steps={schedule.K}, num_inference_steps={schedule.T}), then ertacache.enable(pipe, profile)"
    )
