"""What a comparison is made on, and the header by which its folder knows it again."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ertacache.calibration.prompts import Prompts
from ertacache.errors import InvalidArgument
from ertacache.evaluation.row_figures import made_with
from ertacache.evaluation.separate import check_separate


@dataclass(frozen=True)
class Job:
    """Prompts, noise and call.

    Attributes:
        prompts: held out: no method has seen them.
        calibration_prompts: for everything that methods measure or tune beforehand.
        call: arguments of the pipeline call, `num_inference_steps` among them.
        model: name for the report.
        seeds: runs of every prompt, each from noise of its own.
        seed: prompt n of run s starts from the noise of seed + s · prompts + n.
        samples: prompts whose pictures of the first run are kept.
        batch_size: prompts per call while profiles are calibrated; None for all at once.
        costs: that entrants are tuned to; for the report's sections.

    Raises:
        InvalidArgument: no prompts, a prompt in both lists, or fewer than one seed.
    """

    prompts: tuple[str, ...]
    calibration_prompts: tuple[str, ...]
    call: dict[str, Any]
    model: str = ""
    seeds: int = 1
    seed: int = 10_000
    samples: int = 6
    batch_size: int | None = None
    costs: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.prompts or not self.calibration_prompts:
            raise InvalidArgument("a comparison needs prompts and calibration prompts; give at least one of each")
        check_separate(self.calibration_prompts, self.prompts)
        if self.seeds < 1:
            raise InvalidArgument(f"seeds is {self.seeds}; choose 1 or more runs of every prompt")
        if not isinstance(self.call.get("num_inference_steps"), int):
            raise InvalidArgument("the call has no num_inference_steps; say how many solver steps a run has")

    @property
    def T(self) -> int:
        """Number of solver steps."""
        return int(self.call["num_inference_steps"])

    def prompt(self, number: int, seed: int) -> Prompts:
        """One prompt with its noise."""
        return Prompts((self.prompts[number],), self.seed + seed * len(self.prompts) + number)


def header(
    job: Job, metrics: tuple[str, ...], missing: dict[str, str], images: Tensor, sigmas: Tensor
) -> dict[str, Any]:
    """First line of results.jsonl. Two comparisons with one header may be one comparison that was cut off."""
    return {
        "kind": "header",
        "model": job.model,
        "prompts": list(job.prompts),
        "calibration_prompts": list(job.calibration_prompts),
        "seed": job.seed,
        "seeds": job.seeds,
        "T": job.T,
        "call": job.call,
        "costs": list(job.costs),
        "metrics": [*metrics, "latent_error"],
        "missing_metrics": missing,
        "video": images.ndim == 5,
        "samples": job.samples,
        **made_with(),
        "sigmas": [round(float(sigma), 6) for sigma in sigmas],
    }


def check_same(found: dict[str, Any], wanted: dict[str, Any], folder: str) -> None:
    """Refuse to go on in a folder that holds something else.

    Raises:
        InvalidArgument: naming what differs.
    """
    for name, value in wanted.items():
        if found.get(name) != value:
            raise InvalidArgument(
                f"{folder} holds a comparison with {name} = {str(found.get(name))[:120]}, not {str(value)[:120]}; "
                "choose another folder, or delete that one"
            )
