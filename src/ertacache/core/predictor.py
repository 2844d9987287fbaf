"""Formula (P): every whole-step method is one table of coefficients, known before the run.

    v̂_i = Σ_k Σ_c a[i, k, c] · v[k, c]  +  d[i] · (x_i − x_1)  +  b[i]

v[k, c] is what context c gave at the k-th last computed step, x_1 the latent at the last computed one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ertacache.core.history import History
from ertacache.core.precision import wide, widen
from ertacache.core.schedule import Schedule
from ertacache.errors import PredictorInvalid

__all__ = ["LARGEST_COEFFICIENT", "History", "Predictor", "Terms", "check_coefficients"]

#: Beyond any use: what a prediction weighs is rounded to 8 bits (bfloat16) up to 24 (float32), and ten thousand times
#: that rounding drowns it. Fitted coefficients and lines in sigma stay below a hundred.
LARGEST_COEFFICIENT = 1e4


def check_coefficients(table: Tensor, name: str) -> None:
    """Refuse coefficients [T, *] that no prediction can use.

    Raises:
        PredictorInvalid: NaN, infinity, or one beyond `LARGEST_COEFFICIENT`.
    """
    if not table.isfinite().all():
        raise PredictorInvalid(f"{name} holds NaN or infinite coefficients; fit it again with a ridge")
    if (beyond := (table.abs() > LARGEST_COEFFICIENT).nonzero()).numel():
        step, value = int(beyond[0, 0]), float(table[tuple(beyond[0])])
        raise PredictorInvalid(
            f"{name} holds {value:.4g} at step {step}, beyond ±{LARGEST_COEFFICIENT:g}, where rounding drowns a "
            "prediction; fit it again with a larger ridge, fewer levels of history or more computed steps"
        )


@dataclass(frozen=True, eq=False)
class Terms:
    """One predicted step of one target, ready to run: what is zero is gone, scalars are Python floats.

    Attributes:
        target: whose newest input is x_1.
        a: (source, level, coefficient), level 0 being the newest output; tensors are float32.
        d: coefficient of x_i − x_1, or None.
        b: constant, or None.
    """

    target: str
    a: tuple[tuple[str, int, float | Tensor], ...]
    d: float | Tensor | None
    b: float | Tensor | None

    def __call__(self, history: History, x: Tensor) -> Tensor:
        """The prediction [B, *latent] at latent x [B, *latent].

        Computed in float32 (float64 for float64 tensors), returned in the dtype of the newest stored output.

        Raises:
            PredictorInvalid: the history is shorter than the coefficients ask for.
        """
        newest = history.newest
        if newest is None:
            raise PredictorInvalid(f"the history is empty; compute a step before predicting '{self.target}'")
        total = torch.zeros_like(newest, dtype=wide(newest.dtype), device=history.device)
        for source, level, coefficient in self.a:
            if level >= history.depth(source):
                raise PredictorInvalid(
                    f"'{self.target}' needs {level + 1} outputs of '{source}' and {history.depth(source)} are held; "
                    "compute more steps before it (Predictor.for_schedule checks this ahead of a run)"
                )
            _accumulate(total, history.output(source, level), coefficient)
        if self.d is not None:
            _accumulate(total, widen(x) - history.input(self.target), self.d)
        if self.b is not None:
            total.add_(self.b)
        return total.to(newest.dtype)


@dataclass(frozen=True, eq=False)
class Predictor:
    """The coefficients of formula (P) for a whole run; all tables float32 on the CPU.

    Args:
        targets: names of what is predicted, M of them.
        sources: names of the histories it is predicted from, S of them.
        a: [T, M, S, levels, *coef], level 0 the newest computed step.
        d: [T, M, *coef].
        b: [T, M, *coef].

    `coef` is () for scalars, otherwise a shape that broadcasts against one latent without its batch axis:
    (1, C) for packed [N, C], (C, 1, 1) for [C, H, W], or the full latent shape.

    Raises:
        PredictorInvalid: shapes that disagree, another dtype or device, a value that is not finite or beyond
            `LARGEST_COEFFICIENT`, a name that is missing or doubled.
    """

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    a: Tensor
    d: Tensor
    b: Tensor

    def __post_init__(self) -> None:
        for role, names in (("targets", self.targets), ("sources", self.sources)):
            if not names or len(set(names)) < len(names):
                raise PredictorInvalid(f"{role} are {names}; give one or more names, each once")
        if self.a.ndim < 4 or 0 in self.a.shape:
            raise PredictorInvalid(f"a has shape {tuple(self.a.shape)}; give [T, targets, sources, levels, *coef]")
        head, coef = (self.T, len(self.targets)), self.coef_shape
        expected = {
            "a": (*head, len(self.sources), self.levels, *coef),
            "d": (*head, *coef),
            "b": (*head, *coef),
        }
        for name, shape in expected.items():
            table: Tensor = getattr(self, name)
            if tuple(table.shape) != shape:
                raise PredictorInvalid(f"{name} has shape {tuple(table.shape)} where {shape} fits; reshape it")
            if table.dtype != torch.float32 or table.device.type != "cpu":
                raise PredictorInvalid(f"{name} is {table.dtype} on {table.device}; give table.float().cpu()")
            check_coefficients(table, name)

    @property
    def T(self) -> int:
        """Number of steps."""
        return self.a.shape[0]

    @property
    def levels(self) -> int:
        """Number of computed steps back that the tables have room for."""
        return self.a.shape[3]

    @property
    def coef_shape(self) -> tuple[int, ...]:
        """Shape of one coefficient."""
        return tuple(self.a.shape[4:])

    def needed_levels(self, i: int) -> int:
        """How many computed steps back step i reaches; 0 if it uses no history."""
        used = (self.a[i] != 0).transpose(0, 2).flatten(1).any(1).nonzero()
        return max(int(used.max()) + 1 if len(used) else 0, int(bool(self.d[i].any())))

    def depths(self) -> dict[str, int]:
        """How many outputs of each source must be held: as far back as any step reaches, and at least the newest."""
        used = (self.a != 0).movedim((2, 3), (0, 1)).flatten(2).any(2)
        return {
            source: max([level + 1 for level in range(self.levels) if used[s, level]], default=1)
            for s, source in enumerate(self.sources)
        }

    def for_schedule(self, schedule: Schedule) -> None:
        """Check that this table can serve `schedule`.

        Raises:
            PredictorInvalid: another number of steps, or coefficients at a step that is computed.
            ScheduleInvalid: a step that reaches further back than the schedule has computed.
        """
        if schedule.T != self.T:
            raise PredictorInvalid(
                f"the predictor has {self.T} steps and the schedule {schedule.T}; calibrate for {schedule.T}"
            )
        for i in schedule.computed_steps:
            if any(bool(table[i].any()) for table in (self.a, self.d, self.b)):
                raise PredictorInvalid(f"step {i} of '{schedule}' is computed, yet has coefficients; set its row to 0")
        schedule.require_depth(self.needed_levels)

    def rectified(self, kappa: Tensor, beta: Tensor) -> Self:
        """This predictor followed by v − (κ v + β) (Eq. 15-21), folded into one table at no run-time cost.

        Args:
            kappa, beta: [T, M, *coef'], zero at computed steps; coef' and coef broadcast to the new coef.

        Raises:
            PredictorInvalid: the leading [T, M] differs, or the coefficient shapes do not broadcast.
        """
        for name, table in (("kappa", kappa), ("beta", beta)):
            if table.shape[:2] != self.d.shape[:2]:
                head = tuple(self.d.shape[:2])
                raise PredictorInvalid(f"{name} has shape {tuple(table.shape)}; start it with [T, targets] = {head}")
        ndim = max(len(self.coef_shape), kappa.ndim - 2, beta.ndim - 2)
        keep, offset = 1 - _lift(kappa, 2, ndim), _lift(beta, 2, ndim)
        try:
            b = _lift(self.b, 2, ndim) * keep - offset
        except RuntimeError as error:
            shapes = [self.coef_shape, tuple(kappa.shape[2:]), tuple(beta.shape[2:])]
            message = f"coefficients of shapes {shapes} do not broadcast; fit all on one latent layout"
            raise PredictorInvalid(message) from error
        d = (_lift(self.d, 2, ndim) * keep).expand_as(b)
        a = _lift(self.a, 4, ndim) * keep[:, :, None, None]
        a = a.expand(*a.shape[:4], *b.shape[2:])
        a, d, b = (table.float().contiguous() for table in (a, d, b))
        return type(self)(self.targets, self.sources, a, d, b)

    def terms(self, i: int, target: str, device: torch.device | str = "cpu") -> Terms:
        """The prediction of `target` at step i, with its tensor coefficients on `device`.

        Raises:
            PredictorInvalid: a target that this predictor does not have.
        """
        if target not in self.targets:
            raise PredictorInvalid(f"'{target}' is not predicted here; the targets are {self.targets}")
        m = self.targets.index(target)
        weights = (
            (source, level, _ready(self.a[i, m, s, level], device))
            for level in range(self.levels)
            for s, source in enumerate(self.sources)
        )
        a = tuple((source, level, weight) for source, level, weight in weights if weight is not None)
        return Terms(target, a, _ready(self.d[i, m], device), _ready(self.b[i, m], device))

    @classmethod
    def plain_reuse(cls, schedule: Schedule, contexts: Sequence[str]) -> Self:
        """v̂ = v_1: each context repeats its newest output."""
        return cls._own(schedule, contexts, lambda i: (1.0,), d=0.0)

    @classmethod
    def residual_reuse(cls, schedule: Schedule, contexts: Sequence[str]) -> Self:
        """v̂ = x + (v_1 − x_1): each context repeats its newest residual (Eq. 5-6)."""
        return cls._own(schedule, contexts, lambda i: (1.0,), d=1.0)

    @classmethod
    def extrapolation(
        cls, schedule: Schedule, contexts: Sequence[str], sigmas: Tensor, boundaries: Sequence[int] = ()
    ) -> Self:
        """v̂ = (1 + α) v_1 − α v_2 with α = (σ_i − σ_1)/(σ_1 − σ_2): a line in σ through the last two outputs.

        Where only one output exists it is repeated.

        Args:
            sigmas: [T+1], the solver's time grid.
            boundaries: see `Schedule.depth`.

        Raises:
            PredictorInvalid: a grid of another length, or with two equal sigmas at computed steps.
        """
        if sigmas.shape != (schedule.T + 1,):
            raise PredictorInvalid(f"sigmas has shape {tuple(sigmas.shape)}; give [T+1] = [{schedule.T + 1}]")
        grid = sigmas.double()

        def weights(i: int) -> tuple[float, ...]:
            if schedule.depth(i, boundaries) < 2:
                return (1.0,)
            newest = schedule.last_computed(i)
            older = schedule.last_computed(newest)
            alpha = float((grid[i] - grid[newest]) / (grid[newest] - grid[older]))
            return (1 + alpha, -alpha)

        return cls._own(schedule, contexts, weights, d=0.0)

    @classmethod
    def _own(
        cls, schedule: Schedule, contexts: Sequence[str], weights: Callable[[int], Sequence[float]], d: float
    ) -> Self:
        """Each context predicted from itself, all with the same weights, newest level first."""
        rows = {i: torch.tensor(weights(i)) for i in schedule.predicted_steps}
        n, levels = len(contexts), max((len(row) for row in rows.values()), default=1)
        a, d_table = torch.zeros(schedule.T, n, n, levels), torch.zeros(schedule.T, n)
        for i, row in rows.items():
            a[i, range(n), range(n), : len(row)] = row
            d_table[i] = d
        return cls(tuple(contexts), tuple(contexts), a, d_table, torch.zeros(schedule.T, n))


def _accumulate(total: Tensor, value: Tensor, coefficient: float | Tensor) -> None:
    """total += coefficient · value in one pass: a new tensor for each term costs several times what the sum does."""
    if isinstance(coefficient, Tensor):
        total.addcmul_(widen(value), coefficient)
    else:
        total.add_(value, alpha=coefficient)


def _lift(table: Tensor, lead: int, ndim: int) -> Tensor:
    """Insert axes of length 1 after the first `lead`, so that the coefficient has `ndim` axes."""
    missing = (1,) * (lead + ndim - table.ndim)
    return table.reshape(*table.shape[:lead], *missing, *table.shape[lead:])


def _ready(coefficient: Tensor, device: torch.device | str) -> float | Tensor | None:
    """None for zero, a float for a scalar, a tensor on `device` for the rest."""
    if not coefficient.any():
        return None
    return coefficient.to(device) if coefficient.ndim else float(coefficient)
