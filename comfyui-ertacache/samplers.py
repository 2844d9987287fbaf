"""How ComfyUI's samplers call the model, by name, and which calls a run may make."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ertacache.errors import CacheConflict, UnsupportedPipeline

#: Call the model more than once in a step, or at noise levels between those of the grid.
_MORE_CALLS = frozenset((
    "dpm_2", "dpm_2_ancestral", "dpm_adaptive", "dpm_fast", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_sde_gpu", "heun",
    "heunpp2", "sa_solver_pece", "seeds_2", "seeds_3", "unipc", "unipc_bh2",
))  # fmt: skip
EULER = "euler"
#: The profile's own, of ERTACache Sampler.
OWN = "ertacache"
_CHOOSE = "choose one that calls it once, such as euler, dpmpp_2m, deis or res_multistep"


def sampler_name(sampler: Any) -> str:
    """The name of a SAMPLER as its function has it ('euler', 'unipc'), or its class where it has no function."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", None) or type(sampler).__name__
    return name.removeprefix("sample_").removesuffix("_function")


def check_sampler(name: str) -> None:
    """Refuse a sampler that is known not to make one guided call at each noise level of its grid.

    Raises:
        UnsupportedPipeline: naming it.
        CacheConflict: for one that plays a profile itself.
    """
    if name == OWN:
        raise CacheConflict(
            "the SAMPLER is of ERTACache Sampler and predicts by itself; connect the model from before ERTACache "
            "Apply, and calibrate with euler"
        )
    if "cfg_pp" in name:
        raise UnsupportedPipeline(
            f"sampler {name!r} reads the unguided output of every step, which a predicted step does not have; use the "
            f"sampler without cfg_pp"
        )
    if name in _MORE_CALLS:
        raise UnsupportedPipeline(
            f"sampler {name!r} calls the model twice in a step or between the steps of its grid; {_CHOOSE}"
        )


class Steps:
    """Tells the step of each call of a run, and refuses one that is not the next step's.

    Args:
        sampler: its name, for the error.
        sigmas: [T+1] of the run.
    """

    def __init__(self, sampler: str, sigmas: Tensor | Sequence[float]) -> None:
        self._sampler, self._grid, self.done = sampler, [float(sigma) for sigma in sigmas], 0

    def next(self, sigma: float) -> int:
        """The step of a call at a noise level.

        Raises:
            UnsupportedPipeline: the next step's noise level is another, or there is none.
        """
        step = self.done
        if step >= len(self._grid) - 1:
            raise UnsupportedPipeline(
                f"sampler {self._sampler!r} makes call {step + 1} in a run of {len(self._grid) - 1} steps; {_CHOOSE}"
            )
        if not math.isclose(sigma, self._grid[step], rel_tol=1e-4):
            raise UnsupportedPipeline(
                f"sampler {self._sampler!r} calls the model at sigma {sigma:.6g} where step {step} is at "
                f"{self._grid[step]:.6g}; {_CHOOSE}, without churn"
            )
        self.done += 1
        return step

    def check_ended(self) -> None:
        """Refuse a run that left steps out.

        Raises:
            UnsupportedPipeline: naming how many calls there were.
        """
        if self.done != len(self._grid) - 1:
            raise UnsupportedPipeline(
                f"sampler {self._sampler!r} made {self.done} calls in a run of {len(self._grid) - 1} steps; {_CHOOSE}"
            )
