"""Which profile serves a request, and what that will take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ertacache.errors import InvalidArgument, meant
from ertacache.profile.foreign import number
from ertacache.profile.profile import Profile
from ertacache.serving.adapters import Scales
from ertacache.serving.order import QUALITIES, Order

#: What a run takes as long as: rung, steps, pixels, adapters.
Key = tuple[str, int, int, Scales]
#: The name of no profile.
NONE = "none"


@dataclass(frozen=True)
class Rung:
    """A way to serve a request: by a profile, or computed whole.

    Attributes:
        name: of the profile's file, "none" without.
    """

    name: str
    profile: Profile | None = None

    def schedule(self, steps: int) -> str:
        """The schedule of that many steps, # for a computed one; empty where the profile has none."""
        if self.profile is None:
            return "#" * steps
        return next((str(own.schedule) for own in (self.profile, *self.profile.others) if own.schedule.T == steps), "")

    @property
    def loss(self) -> float | None:
        """PSNR in dB on judged prompts; None where nothing was measured."""
        return None if self.profile is None else number(self.profile.provenance.heldout, "psnr", "mean")

    @property
    def share(self) -> float:
        """Of the steps, how many are computed."""
        return 1.0 if self.profile is None else self.profile.schedule.K / self.profile.schedule.T


def read_rungs(paths: Sequence[str]) -> tuple[Rung, ...]:
    """A rung for each profile file or Hub id, the cheapest first, and the one without a profile.

    Raises:
        InvalidArgument: two of one name. ProfileInvalid: no sound profile.
    """
    rungs = [Rung(Path(path).name.removesuffix(".safetensors"), Profile.load(path)) for path in paths]
    names = [NONE, *(rung.name for rung in rungs)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidArgument(f"two profiles are named {twice[0]!r} ('none' is no profile); rename one of the files")
    return (*sorted(rungs, key=lambda rung: rung.share), Rung(NONE))


@dataclass
class Ladder:
    """The rungs, and the seconds that each took.

    Attributes:
        rungs: from the cheapest; the last is without a profile.
        defaults: the call where a client says nothing: that of the calibration.
        taken: seconds of a picture by rung, steps, size and adapters; the newest run tells.
    """

    rungs: tuple[Rung, ...]
    defaults: Mapping[str, Any]
    taken: dict[Key, float] = field(default_factory=dict[Key, float])

    def choose(self, order: Order) -> tuple[Rung, str | None]:
        """The rung of a request, and why nothing is cached where that was not what the client asked for.

        Qualities below "max" are spread over the profiles that have the request's steps; "auto" is the dearest.

        Raises:
            InvalidArgument: a profile that is not here.
        """
        steps, plain = order.call["num_inference_steps"], self.rungs[-1]
        if order.profile is not None:
            named = [rung for rung in self.rungs if rung.name == order.profile]
            if not named:
                names = [rung.name for rung in self.rungs]
                near = meant(order.profile, names) or f"; there are {', '.join(names)}"
                raise InvalidArgument(f"profile is {order.profile!r}, which is not served here{near}")
            return named[0], None
        if order.quality == "max":
            return plain, None
        fitting = [rung for rung in self.rungs[:-1] if rung.schedule(steps)]
        if not fitting:
            known = sorted({rung.profile.schedule.T for rung in self.rungs if rung.profile is not None})
            has = f"those here are for {', '.join(map(str, known))}" if known else "none is served here"
            return plain, f"num_inference_steps: no profile is for {steps}; {has}"
        last = len(fitting) - 1
        at = last if order.quality == "auto" else round(QUALITIES.index(order.quality) * last / 3)
        return fitting[at], None

    def expected(self, rung: Rung, order: Order) -> float:
        """Seconds of one picture or clip: those of the last such run; else without its adapters, or by proportion."""
        key, usual = _key(rung, order.call, order.lora), _key(rung, self.defaults)
        for known in (key, (*key[:3], ())):
            if known in self.taken:
                return self.taken[known]
        base = self.taken.get(_key(self.rungs[-1], self.defaults), 0.0)
        computed = rung.schedule(key[1]).count("#") or key[1]
        return base * computed / max(1, usual[1]) * key[2] / max(1, usual[2])

    def took(self, rung: Rung, order: Order, seconds: float) -> None:
        """Note what a whole run took; sizes that were asked for once may be many, so that the oldest are forgotten."""
        self.taken[_key(rung, order.call, order.lora)] = seconds
        while len(self.taken) > 256:
            self.taken.pop(next(key for key in self.taken if key[1:] != _key(rung, self.defaults)[1:]))


def _key(rung: Rung, call: Mapping[str, Any], lora: Scales = ()) -> Key:
    pixels = call.get("height", 1) * call.get("width", 1) * call.get("num_frames", 1)
    return rung.name, call["num_inference_steps"], pixels, lora
