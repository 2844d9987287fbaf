"""What makes a whole-step method: schedule, history, site, grid and rectifier; plain data."""

from dataclasses import dataclass, replace
from typing import Literal

from ertacache.core.compensation_fit import Estimator, Sharing
from ertacache.core.rectify import Granularity
from ertacache.core.schedule import Schedule
from ertacache.pipelines.branches import DIRECTION
from ertacache.profile.checks import SMALL
from ertacache.profile.profile import Activation, Site


@dataclass(frozen=True)
class Correcting:
    """How the computed steps of a quantised denoiser are corrected.

    Attributes:
        estimator, sharing: see `core.compensation_fit`.
        fit: on the latents of the full-precision run ("teacher-forced"), or on the run's own, corrected step by step:
            to the recorded outputs ("closed-loop"), or to what brings the latent back to the recorded one
            ("trajectory").
        previous_weight: of the term for what the step before got wrong, 0 for none.
    """

    estimator: Estimator = "bias"
    sharing: Sharing = "channel"
    fit: Literal["teacher-forced", "closed-loop", "trajectory"] = "trajectory"
    previous_weight: float = 0.0


@dataclass(frozen=True)
class Method:
    """Every choice of a calibration but the prompts.

    Attributes:
        basis: what is predicted from: the newest output, the newest residual v − x (Eq. 5-6), or fitted weights.
        site: where predictions are made.
        schedule: which steps are computed; None lets `threshold` decide (Algorithm 2).
        levels: depth of the fitted basis in outputs of the target.
        directions: its depth in guidance directions c − u; at site guided only.
        branches: let it use the calls' outputs in place of what the solver received.
        ridge: its shrinkage toward residual reuse.
        aim: what it is fitted to at a step: the true output there, or whatever brings the latent back to the recorded
            trajectory after it.
        strength: γ of the timestep adjustment.
        rectifier: granularity of the rectifier, None for none. rectifier_ridge: its shrinkage.
        threshold: the λ that decides the schedule, or that gave it.
        grid: the time grid [T+1] to run on instead of the solver's own.
        small: predicted steps at which a small model is called and predicted from, toward which a fit then shrinks; for
            fits at site guided that aim at the trajectory.
        correcting: how computed steps are corrected where the model is quantised; None for not at all.
    """

    basis: Literal["reuse", "residual", "fitted"]
    site: Site
    schedule: Schedule | None = None
    levels: int = 3
    directions: int = 0
    branches: bool = False
    ridge: float = 0.0
    aim: Literal["step", "trajectory"] = "step"
    strength: float = 0.0
    rectifier: Granularity | None = None
    rectifier_ridge: float = 0.0
    activation: Activation = "linear"
    threshold: float | None = None
    grid: tuple[float, ...] | None = None
    correcting: Correcting | None = None
    small: tuple[int, ...] = ()

    @property
    def fitted(self) -> bool:
        """Whether weights are fitted."""
        return self.basis == "fitted" and self.levels > 0

    @property
    def residual(self) -> bool:
        """Whether what is repeated is the residual v − x."""
        return self.basis != "reuse"

    @property
    def needs_truth(self) -> bool:
        """Whether its closed loop computes predicted steps too: something is measured against their true output."""
        measured = self.schedule is None or self.rectifier is not None or self.strength != 0
        return self.site != "guided" or measured or (self.fitted and self.aim == "step")

    @property
    def nothing_to_fit(self) -> bool:
        """Whether its coefficients are known without a run."""
        return not self.fitted and self.rectifier is None and self.correcting is None

    def features(
        self, target: str, branches: tuple[str, ...], depth: int, *, small: bool = False
    ) -> list[tuple[str, int]]:
        """What a fit uses at a step with `depth` computed ones before it, by source and level: the history, and of a
        step with a `small` model its output."""
        sources = branches if self.branches else (target,)
        own = [(source, level) for level in range(min(self.levels, depth)) for source in sources]
        own += [(DIRECTION, level) for level in range(min(self.directions, depth))]
        return own + [(SMALL, 0)] * small

    def policy(self) -> "Method":
        """What decides its schedule by a threshold: reuse of its kind. Guidance is linear in the outputs, so that
        reuse at each call and reuse of what the solver receives are one trajectory: at site `output` it is decided
        there too."""
        basis = "reuse" if self.basis == "reuse" else "residual"
        return Method(basis, "hidden" if self.site == "hidden" else "guided", levels=0, threshold=self.threshold)

    def grid_plan(self) -> "Method":
        """What finds its adjusted time grid, where the predictor does not depend on it: see `policy`."""
        return replace(self.policy(), schedule=self.schedule, strength=self.strength, threshold=None)
