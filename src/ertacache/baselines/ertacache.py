"""ERTACache, part by part, and what goes past it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ertacache.baselines.profile_method import ProfileMethod
from ertacache.core.rectify import Granularity
from ertacache.profile.profile import Site


@dataclass(frozen=True)
class OfflinePolicy(ProfileMethod):
    """The first part alone: Algorithm 2's schedule with residual reuse."""

    key: ClassVar[str] = "ertacache-policy"
    title: ClassVar[str] = "ERTACache: offline policy"

    schedule: Literal["uniform", "policy"] = "policy"


@dataclass(frozen=True)
class AdjustedTimesteps(OfflinePolicy):
    """And the adjusted time grid."""

    key: ClassVar[str] = "ertacache-timesteps"
    title: ClassVar[str] = "ERTACache: policy + timesteps"

    adjusted: bool = True


@dataclass(frozen=True)
class Ertacache(AdjustedTimesteps):
    """And the error rectifier, per channel: the whole method of the paper."""

    key: ClassVar[str] = "ertacache"
    title: ClassVar[str] = "ERTACache"

    rectifier: Granularity | None = "channel"


@dataclass(frozen=True)
class HiddenErtacache(Ertacache):
    """The whole method on the residual of the block stack, where TeaCache's code has it."""

    key: ClassVar[str] = "ertacache-hidden"
    title: ClassVar[str] = "ERTACache, hidden residual"
    work: ClassVar[str] = "the embeddings and the head"

    site: Site = "hidden"


@dataclass(frozen=True)
class FittedPolicy(ProfileMethod):
    """Fitted coefficients for what the solver receives, on Algorithm 2's schedule."""

    key: ClassVar[str] = "fitted-policy"
    title: ClassVar[str] = "fitted, on the policy's schedule"
    paper: ClassVar[str] = "this package"

    schedule: Literal["uniform", "policy"] = "policy"
    basis: Literal["reuse", "residual", "fitted"] = "fitted"
    site: Site = "guided"


@dataclass(frozen=True)
class Fitted(ProfileMethod):
    """Fitted coefficients for what the solver receives, on evenly spaced steps."""

    key: ClassVar[str] = "fitted"
    title: ClassVar[str] = "fitted (ours)"
    paper: ClassVar[str] = "this package"

    basis: Literal["reuse", "residual", "fitted"] = "fitted"
    site: Site = "guided"


@dataclass(frozen=True)
class FittedTimesteps(Fitted):
    """And the adjusted time grid."""

    key: ClassVar[str] = "fitted-timesteps"
    title: ClassVar[str] = "fitted + timesteps (ours)"

    adjusted: bool = True
