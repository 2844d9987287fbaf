"""Schedules made by hand: computed steps that grow denser towards one end of the run."""

import math

from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument


def density(T: int, K: int, power: float) -> Schedule:
    """K of T steps computed, the j-th at ((j/(K−1))^power)·(T−1), the first and the last among them.

    Power 1 is `Schedule.uniform`. Above 1 the gaps grow with the step (a power of 2 makes them an arithmetic
    sequence), below 1 they shrink: what practitioners write by hand as growing and shrinking gaps is this one knob.
    Where several of these positions round to one step, which happens at the dense end, the steps nearest to that
    end that are still free are computed instead.

    Raises:
        ScheduleInvalid: K is above T, or below 2 where T is not 1.
        InvalidArgument: a power that is not a positive number.
    """
    if not (power > 0 and math.isfinite(power)):
        raise InvalidArgument(f"power is {power}; use 1 for even gaps, more for growing, less for shrinking ones")
    if power == 1 or not 2 <= K <= T:
        return Schedule.uniform(T, K)
    chosen = {round((j / (K - 1)) ** power * (T - 1)) for j in range(K)}
    free = [i for i in range(T) if i not in chosen]
    missing = K - len(chosen)
    chosen.update(free[:missing] if power > 1 else free[len(free) - missing :])
    return Schedule.from_steps(T, chosen)
