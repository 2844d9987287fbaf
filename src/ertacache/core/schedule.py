"""Which steps of a run are computed; the others are predicted from the outputs that those left."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from ertacache.errors import ScheduleInvalid


@dataclass(frozen=True, slots=True)
class Schedule:
    """One decision per step, in inference order: step 0 is the noisiest.

    Args:
        computed: True where the denoiser runs, False where its output is predicted. The first step is
            computed, because nothing exists to predict it from.

    Raises:
        ScheduleInvalid: no steps, an entry that is not a bool, or a first step that is not computed.
    """

    computed: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not self.computed:
            raise ScheduleInvalid("a schedule of 0 steps cannot run; give one True or False per step")
        for i, entry in enumerate(self.computed):
            if type(entry) is not bool:
                raise ScheduleInvalid(f"step {i} of a schedule is {entry!r}; write True or False")
        if not self.computed[0]:
            raise ScheduleInvalid(f"'{self}' predicts step 0, which has no history; start with '#'")

    @classmethod
    def all_computed(cls, T: int) -> Self:
        """Every step computed: the uncached run."""
        return cls((True,) * T)

    @classmethod
    def uniform(cls, T: int, K: int) -> Self:
        """K of T steps computed, as evenly spaced as integers allow, the first and the last among them.

        Raises:
            ScheduleInvalid: K is above T, or below 2 where T is not 1 (first and last are two steps).
        """
        if not min(2, T) <= K <= T:
            raise ScheduleInvalid(f"K={K} of T={T} steps cannot be spread; choose K from {min(2, T)} to {T}")
        if K == 1:
            return cls.all_computed(1)
        return cls.from_steps(T, [round(j * (T - 1) / (K - 1)) for j in range(K)])

    @classmethod
    def from_steps(cls, T: int, steps: Iterable[int]) -> Self:
        """The steps at the given indices computed, every other of the T steps predicted.

        Raises:
            ScheduleInvalid: an index outside 0..T-1.
        """
        chosen = set(steps)
        if outside := sorted(i for i in chosen if not 0 <= i < T):
            raise ScheduleInvalid(f"steps {outside} do not exist in a run of T={T}; use indices 0 to {T - 1}")
        return cls(tuple(i in chosen for i in range(T)))

    @classmethod
    def from_mask(cls, mask: str | Iterable[bool]) -> Self:
        """The inverse of `str`, with '#' computed and '.' predicted; or one bool per step.

        Raises:
            ScheduleInvalid: another character than these two.
        """
        if not isinstance(mask, str):
            return cls(tuple(mask))
        if unknown := sorted(set(mask) - set("#.")):
            raise ScheduleInvalid(f"'{mask}' has {unknown}; write '#' for computed, '.' for predicted")
        return cls(tuple(mark == "#" for mark in mask))

    @property
    def T(self) -> int:
        """Number of steps."""
        return len(self.computed)

    @property
    def K(self) -> int:
        """Number of computed steps."""
        return sum(self.computed)

    @property
    def computed_steps(self) -> tuple[int, ...]:
        """Indices of the computed steps, ascending."""
        return tuple(i for i, computed in enumerate(self.computed) if computed)

    @property
    def predicted_steps(self) -> tuple[int, ...]:
        """Indices of the predicted steps, ascending; the paper's set S."""
        return tuple(i for i, computed in enumerate(self.computed) if not computed)

    def depth(self, i: int, boundaries: Iterable[int] = ()) -> int:
        """Number of steps computed before step i: the longest history that step i can use.

        Args:
            boundaries: steps at which another denoiser takes over, whose history begins there.
        """
        start = max((step for step in boundaries if step <= i), default=0)
        return sum(self.computed[start:i])

    def with_steps(self, steps: Iterable[int]) -> Self:
        """This schedule with further steps computed.

        Raises:
            ScheduleInvalid: an index outside 0..T-1.
        """
        return self.from_steps(self.T, {*self.computed_steps, *steps})

    def last_computed(self, i: int) -> int:
        """Index of the newest step computed before step i.

        Raises:
            ScheduleInvalid: i is 0.
        """
        if i < 1:
            raise ScheduleInvalid(f"no step is computed before step {i}; ask from step 1 on")
        return max(j for j in range(i) if self.computed[j])

    def require_depth(self, levels_by_step: Callable[[int], int] | Sequence[int]) -> None:
        """Refuse a predictor that reaches further back than this schedule has computed.

        Args:
            levels_by_step: for each step, how many computed steps back its prediction reaches (0 = none);
                a function of the step or a sequence of T counts.

        Raises:
            ScheduleInvalid: at the first step whose history is too short.
        """
        levels = levels_by_step if callable(levels_by_step) else levels_by_step.__getitem__
        for i in self.predicted_steps:
            if (needed := levels(i)) > (held := self.depth(i)):
                raise ScheduleInvalid(
                    f"step {i} of '{self}' needs the last {needed} computed steps and has {held}; "
                    "compute more steps before it or use a shorter history there"
                )

    def __len__(self) -> int:
        return self.T

    def __str__(self) -> str:
        return "".join("#" if computed else "." for computed in self.computed)
