"""What a closed-loop pass is asked to do, and what it found: plain data."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ertacache.calibration.sums import Key
from ertacache.core.rectify import Affine, Granularity
from ertacache.core.schedule import Schedule


@dataclass(frozen=True)
class Plan:
    """What a closed-loop pass predicts with, and what it solves for.

    Attributes:
        level: where predictions are made: what the solver receives, each call's output, or its hidden residual.
        residual: reuse the residual v − x (Eq. 5-6) rather than the output itself.
        schedule: which steps are computed; None lets `threshold` decide (Algorithm 2).
        levels: history depth of the least-squares predictor; 0 for plain reuse of the newest output.
        branches: let that predictor use the calls' outputs as well as what the solver received.
        ridge: its shrinkage toward residual reuse.
        aim: what that predictor is fitted to at a step: the true output there, or whatever brings the latent back to
            the uncached run's after it.
        strength: of the timestep adjustment, 0 for none.
        rectifier: granularity of the rectifier, None for none.
        activation: linear, or the paper's literal sigmoid.
        channel_axis: see `models.Family`.
    """

    level: Literal["guided", "output", "hidden"]
    residual: bool = True
    schedule: Schedule | None = None
    threshold: float = 0.0
    levels: int = 0
    branches: bool = False
    ridge: float = 0.0
    aim: Literal["step", "trajectory"] = "step"
    strength: float = 0.0
    rectifier: Granularity | None = None
    activation: Literal["linear", "sigmoid"] = "linear"
    rectifier_ridge: float = 0.0
    channel_axis: int = -1


@dataclass
class Solved:
    """What closed-loop passes have fixed so far: plain data.

    Attributes:
        computed: decisions of a threshold, step by step.
        weights: of the least-squares predictor, added to those of reuse; in the order of `feature_names`.
        affine: the rectifier.
        phis: Eq. 13 at the predicted steps.
        grid: float64 [T+1] the time grid that the pass ended with; None for the solver's own.
        change: largest difference of a number above from the pass before; 0 in lockstep, which is exact.
    """

    computed: dict[int, bool] = field(default_factory=dict[int, bool])
    weights: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    affine: dict[Key, Affine] = field(default_factory=dict[Key, Affine])
    phis: dict[int, float] = field(default_factory=dict[int, float])
    grid: Tensor | None = None
    change: float = 0.0


def feature_names(plan: Plan, target: str, branches: tuple[str, ...], depth: int) -> list[tuple[str, int]]:
    """The history that a fit uses at one step: the target's own outputs, or those of all branches."""
    sources = branches if plan.branches else (target,)
    return [(source, level) for level in range(min(plan.levels, depth)) for source in sources]


def largest_change(before: Solved, after: Solved) -> float:
    """How far two passes are apart in a weight, a rectifier's coefficient or a sigma; infinite where one is new."""
    old, new = (_numbers(solved) for solved in (before, after))
    if old.keys() != new.keys():
        return math.inf
    return max((float((new[key] - old[key]).abs().max()) for key in new), default=0.0)


def _numbers(solved: Solved) -> dict[Any, Tensor]:
    affine = {("affine", key): torch.stack([a.kappa, a.beta]) for key, a in solved.affine.items()}
    grid = {} if solved.grid is None else {"grid": solved.grid}
    return {**solved.weights, **affine, **grid}


def schedule_of(solved: Solved, T: int) -> Schedule | None:
    """The schedule, once every step is decided."""
    if len(solved.computed) < T:
        return None
    return Schedule(tuple(solved.computed[i] for i in range(T)))


def to_state(solved: Solved) -> dict[str, Any]:
    """Plain containers and tensors, for a checkpoint."""
    return {
        "computed": solved.computed,
        "weights": solved.weights,
        "affine": {key: (affine.kappa, affine.beta) for key, affine in solved.affine.items()},
        "phis": solved.phis,
        "grid": solved.grid,
        "change": solved.change,
    }


def from_state(state: dict[str, Any]) -> Solved:
    """Inverse of `to_state`."""
    solved = Solved(**state)
    solved.affine = {key: Affine(*pair) for key, pair in state["affine"].items()}
    return solved
