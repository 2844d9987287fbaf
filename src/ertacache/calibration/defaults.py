"""What `calibrate` does where nothing is said: one row of words per method, for Python and the command line alike.

Plain data: importing it loads no torch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ertacache.core.rectify import Granularity
    from ertacache.core.schedule import Schedule
    from ertacache.profile.profile import Activation, Site

MethodName = Literal["fitted", "ertacache"]
Basis = Literal["reuse", "residual", "fitted"]
Timesteps = Literal["none", "paper", "auto"]
Aim = Literal["step", "trajectory", "auto"]


@dataclass(frozen=True, slots=True)
class Choices:
    """Everything that makes a whole-step method, in the words of `calibrate`, which explains them.

    Attributes:
        schedule: "uniform", "policy" (Algorithm 2 at a λ) or a Schedule.
        history, aim: of the fitted basis; None for the others, which have neither.
    """

    schedule: "Schedule | str"
    basis: Basis
    site: "Site"
    history: int | Literal["auto"] | None
    aim: Aim | None
    timesteps: Timesteps | float
    rectifier: "Granularity | Literal['none']"
    activation: "Activation"


#: "fitted" is what measured best, "ertacache" the paper.
DEFAULTS: dict[str, Choices] = {
    "fitted": Choices("uniform", "fitted", "guided", 3, "trajectory", "none", "none", "linear"),
    "ertacache": Choices("policy", "residual", "output", None, None, "auto", "channel", "linear"),
}
METHOD: MethodName = "fitted"
#: Shares of the prompts that candidates are compared on, and that the figures in the profile are measured on.
CHOOSE, HOLDOUT = 0.2, 0.2
#: Shrinkage of the fitted predictor toward residual reuse, relative to the features' energy.
RIDGE = 1e-3
