"""Evenly spaced computed steps, with the predictors that need no calibration."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from ertacache.baselines.baseline import Bench
from ertacache.baselines.profile_method import ProfileMethod
from ertacache.calibration.assemble import extrapolated
from ertacache.profile.profile import Site


@dataclass(frozen=True)
class UniformReuse(ProfileMethod):
    """The last output again."""

    key: ClassVar[str] = "uniform-reuse"
    title: ClassVar[str] = "uniform, plain reuse"
    paper: ClassVar[str] = "none: the simplest cache"

    basis: Literal["reuse", "residual", "fitted"] = "reuse"


@dataclass(frozen=True)
class Uniform(ProfileMethod):
    """The paper's Uniform Cache: residual reuse (Eq. 5-6) on evenly spaced steps."""

    key: ClassVar[str] = "uniform"
    title: ClassVar[str] = "uniform, residual reuse"


@dataclass(frozen=True)
class UniformHidden(ProfileMethod):
    """Reuse of the block stack's residual, TeaCache's site, on evenly spaced steps."""

    key: ClassVar[str] = "uniform-hidden"
    title: ClassVar[str] = "uniform, hidden residual"
    work: ClassVar[str] = "the embeddings and the head"

    site: Site = "hidden"


@dataclass(frozen=True)
class UniformExtrapolation(ProfileMethod):
    """A line in σ through the last two outputs, on evenly spaced steps."""

    key: ClassVar[str] = "uniform-extrapolation"
    title: ClassVar[str] = "uniform, order-1 extrapolation"
    paper: ClassVar[str] = "order 1 of TaylorSeer (arXiv 2503.06923), on whole steps"

    basis: Literal["reuse", "residual", "fitted"] = "reuse"

    def planned(self, bench: Bench, target: float | None) -> Self:
        plain = super().planned(bench, target)
        return plain if plain.profile is None else replace(plain, profile=extrapolated(plain.profile))
