"""What takes part in the frontier: every compared method, and what `ertacache.calibrate` makes of a budget."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import ertacache
from ertacache.baselines import catalogue
from ertacache.baselines.baseline import Baseline, Bench
from ertacache.baselines.profile_method import ProfileMethod
from ertacache.errors import InvalidArgument
from ertacache.profile.profile import Profile

EFFORTS = ("fast", "balanced", "thorough")
#: The row whose difference to the others is taken.
OURS = "plan-balanced"
#: The same with evenly spaced steps: what the search is worth.
EVEN = "plan-fast"
#: Of this package too, and so nobody else's.
OWN = {*(f"plan-{effort}" for effort in EFFORTS), "fitted", "fitted-policy", "fitted-timesteps"}


@dataclass(frozen=True)
class Planned(ProfileMethod):
    """The profile of the public `calibrate` at a number of steps, as a user gets it.

    Args:
        effort: of the search.
        profiles: by K, what was calibrated already.
    """

    key: ClassVar[str] = "plan"
    title: ClassVar[str] = "plan (ours)"
    paper: ClassVar[str] = "this package"

    effort: str = "balanced"
    profiles: Mapping[int, Profile] = field(default_factory=dict[int, Profile], repr=False, compare=False)

    def planned(self, bench: Bench, target: float | None) -> Self:
        K = min(bench.T, max(2, round((self.share if target is None else target) * bench.T)))
        profile = self.profiles[K] if K in self.profiles else calibrated(bench, self.effort, [K])[K]
        return replace(self, share=profile.schedule.K / bench.T, profile=profile)


def calibrated(bench: Bench, effort: str, steps: list[int]) -> dict[int, Profile]:
    """The plan of an effort at each of several numbers of steps, from one recording."""
    efforts: dict[str, Any] = {"effort": effort}
    profiles = ertacache.calibrate(
        bench.pipe, bench.prompts.texts, compute_steps=steps, seed=bench.prompts.seed, call=bench.call,
        batch_size=bench.batch_size, show_progress=False, **efforts,
    )  # fmt: skip
    return dict(zip(steps, profiles, strict=True))


def name_of(method: Baseline) -> str:
    """Its key; of a plan, with the effort."""
    return f"{method.key}-{method.effort}" if isinstance(method, Planned) else method.key


def title_of(method: Baseline) -> str:
    """Its title; of a plan that is not the default one, with the effort."""
    other = isinstance(method, Planned) and name_of(method) != OURS
    return f"plan, {method.effort} (ours)" if other else method.title


def methods(keys: str) -> list[Baseline]:
    """Methods by name: `all` is the default plan, the even one and every compared method.

    Raises:
        InvalidArgument: an unknown name.
    """
    plans: dict[str, Baseline] = {f"plan-{effort}": Planned(effort=effort) for effort in EFFORTS}
    if keys == "all":
        return [plans[OURS], plans[EVEN], *catalogue.METHODS]
    wanted = [key.strip() for key in keys.split(",") if key.strip()]
    if not wanted or len(set(wanted)) < len(wanted):
        raise InvalidArgument(f"methods is {keys!r}; name different methods separated by commas, or all")
    return [plans[key] if key in plans else catalogue.method(key) for key in wanted]
