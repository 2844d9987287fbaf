"""What a profile holds, checked: schedule, site, coefficients, time grids, rectifier and provenance."""

from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from ertacache.core.compensation import Compensation
from ertacache.core.predictor import Predictor, check_coefficients
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.profile.checks import (
    MAX_STEPS,
    SMALL,
    check_boundaries,
    check_coefficient_shape,
    check_compensation,
    check_finite,
    check_grids,
    check_names,
    check_one_of,
    check_others,
    check_predicts,
    check_rectifier_rows,
    check_small,
    check_told_again,
)
from ertacache.profile.guidance_scale import scale_that_differs
from ertacache.profile.provenance import Provenance
from ertacache.profile.sealed import short

#: What profiles on one grid have in common, see `Content._plan`.
_OF_ONE_PLAN = (
    "schedule", "sigmas", "targets", "sources", "predictor.a.shape", "provenance.contexts", "provenance.calls",
    "provenance.boundaries",
)  # fmt: skip
Site = Literal["output", "guided", "hidden"]
Activation = Literal["linear", "sigmoid"]


@dataclass(frozen=True, eq=False, slots=True)
class Rectifier:
    """The affine correction of a prediction where it is not folded into the predictor (Eq. 15-21).

    That is at site `hidden`, where it acts on the output of the head, with the paper's literal sigmoid, and with one
    coefficient per element, which the predictor would have to hold several times.

    Args:
        kappa, beta: CPU tensors [T, targets, *coef] of float32, or both of float16, zero at computed steps; coef
            broadcasts against one output without its batch axis.
        activation: linear is v − (κ v + β); sigmoid is v − sigmoid(K v + B) with K = 4κ and B = 4β − 2.

    Raises:
        InvalidArgument: an unknown activation, or tables that are not finite, of one dtype and of one shape;
            PredictorInvalid, a kind of it, for a coefficient beyond any use.
    """

    kappa: Tensor
    beta: Tensor
    activation: Activation = "linear"

    def __post_init__(self) -> None:
        check_one_of(self.activation, get_args(Activation), "rectifier.activation")
        if self.kappa.shape != self.beta.shape or self.kappa.ndim < 2 or self.kappa.dtype != self.beta.dtype:
            raise InvalidArgument(
                f"rectifier.kappa has shape {list(self.kappa.shape)} and rectifier.beta has {list(self.beta.shape)}, "
                f"in {self.kappa.dtype} and {self.beta.dtype}; both must be [steps, targets, *coefficient] in one dtype"
            )
        for table, key in ((self.kappa, "rectifier.kappa"), (self.beta, "rectifier.beta")):
            check_finite(table, key, (torch.float32, torch.float16))
            check_coefficients(table, key)

    def half(self) -> Self:
        """The same in float16: half the bytes, each coefficient off by at most 2⁻¹¹ (0.05 %) of itself or 3e-8."""
        return type(self)(self.kappa.half(), self.beta.half(), self.activation)


@dataclass(frozen=True, eq=False, slots=True)
class Content:
    """What to compute, how to predict the rest, and the grid to integrate on.

    Args:
        base_sigmas: float32 CPU tensor [T+1], strictly decreasing or increasing: the solver's own grid.
        sigmas: the grid to run on (Eq. 13-14), of the same kind and with the same first and last entry; equal
            to the base where nothing was adjusted.
        rectifier: None where there is no correction or where it is folded into the predictor.
        others: profiles of the same model, scheduler and site for other time grids, as other sizes have them, or for
            other guidance scales on one of these grids, with the same plan; they have no others.
        compensation: corrects what the solver receives at computed steps of a quantised denoiser; at site guided only.
            None where nothing is corrected.

    Raises:
        InvalidArgument: parts that do not fit together; ScheduleInvalid and PredictorInvalid are kinds of it.
    """

    schedule: Schedule
    site: Site
    predictor: Predictor
    base_sigmas: Tensor
    sigmas: Tensor
    rectifier: Rectifier | None
    provenance: Provenance
    others: tuple[Self, ...] = ()
    compensation: Compensation | None = None

    def __post_init__(self) -> None:
        schedule, predictor, facts = self.schedule, self.predictor, self.provenance
        check_one_of(self.site, get_args(Site), "site")
        if schedule.T > MAX_STEPS:
            raise InvalidArgument(f"schedule has {schedule.T} steps; use at most {MAX_STEPS}")
        check_grids(self.base_sigmas, self.sigmas, schedule.T)
        predictor.for_schedule(schedule)
        check_boundaries(facts.boundaries, schedule, predictor)
        check_names(self.site, predictor, facts.contexts)
        check_small(predictor, facts)
        check_told_again(schedule, self.site, facts)
        if self.site == "hidden" and bool(predictor.d.any()):
            raise InvalidArgument("predictor.d is not 0 at site 'hidden', which holds residuals; set it to 0")
        if self.site == "hidden" and predictor.coef_shape:
            raise InvalidArgument(
                f"predictor has coefficients of shape {list(predictor.coef_shape)} at site 'hidden', whose residuals "
                "have no channels of the latent; use plain numbers"
            )
        check_predicts(predictor, schedule)
        check_coefficient_shape(predictor.coef_shape, "predictor", self.site, facts)
        if self.rectifier is not None:
            check_rectifier_rows(self.rectifier.kappa, self.rectifier.beta, schedule, len(predictor.targets))
            check_coefficient_shape(tuple(self.rectifier.kappa.shape[2:]), "rectifier", self.site, facts)
        if self.compensation is not None:
            check_compensation(self.compensation, schedule, self.site, facts)
        self._check_others()

    @property
    def small_steps(self) -> tuple[int, ...]:
        """The predicted steps at which a small model is called."""
        if SMALL not in self.predictor.sources:
            return ()
        asked = self.predictor.a[:, :, self.predictor.sources.index(SMALL)].flatten(1).any(1)
        return tuple(i for i in self.schedule.predicted_steps if asked[i])

    @property
    def counted_steps(self) -> float:
        """What a run computes, in steps of the denoiser: one of a small model counts as its share of the operations."""
        return self.schedule.K + len(self.small_steps) * self.provenance.small_model.get("share", 0.0)

    def _check_others(self) -> None:
        check_others(self.provenance, [other.provenance for other in self.others])
        for n, other in enumerate(self.others):
            if other.others:
                raise InvalidArgument(f"others[{n}] has others; keep all of them in the first profile")
            if other.site != self.site:
                raise InvalidArgument(
                    f"others[{n}].site is {other.site!r} where the first profile's is {self.site!r}; calibrate all at "
                    "one site"
                )
            for before in (self, *self.others[:n]):
                if torch.equal(other.base_sigmas, before.base_sigmas):
                    other._check_scale(before, f"others[{n}]")

    def _check_scale(self, before: Self, key: str) -> None:
        """Two profiles on one grid differ in guidance, and in nothing that could not lie between them."""
        if scale_that_differs(before.provenance, self.provenance) is None:
            raise InvalidArgument(
                f"{key}.base_sigmas is the grid of a profile before it, and the guidance is "
                f"{_scale(self.provenance)} where that has {_scale(before.provenance)}; keep one for each grid, or one "
                "for each embedded guidance or each guidance weight there"
            )
        for name, own, known in zip(_OF_ONE_PLAN, self._plan(), before._plan(), strict=True):
            if own != known:
                raise InvalidArgument(
                    f"{key}.{name} is {short(own)} where a profile before it on the same grid has {short(known)}; "
                    "profiles of one grid differ in guidance alone: calibrate all scales with one plan"
                )
        if self.rectifier is not None or before.rectifier is not None:
            raise InvalidArgument(
                f"{key} is on the grid of a profile before it and one of them has a rectifier, of which nothing lies "
                "between two guidance scales; calibrate without one, or keep a file for each scale"
            )

    def _plan(self) -> tuple[object, ...]:
        """What `_OF_ONE_PLAN` names."""
        facts, predictor = self.provenance, self.predictor
        plan = (str(self.schedule), self.sigmas.tolist(), predictor.targets, predictor.sources, list(predictor.a.shape))
        return (*plan, facts.contexts, facts.calls, facts.boundaries)


def _scale(facts: Provenance) -> str:
    return f"embedded {facts.embedded_guidance}, weight {facts.guidance_weight}"
