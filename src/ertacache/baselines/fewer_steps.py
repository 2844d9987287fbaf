"""The plain pipeline with fewer solver steps: what every cache has to beat."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from ertacache.baselines.baseline import Baseline, Knob


@dataclass(frozen=True)
class FewerSteps(Baseline):
    """`num_inference_steps` set to the share of the steps that the cost allows.

    Args:
        share: of the steps; 1 is the plain pipeline.
    """

    key: ClassVar[str] = "fewer-steps"
    title: ClassVar[str] = "fewer steps"
    paper: ClassVar[str] = "none: the solver as it is"
    work: ClassVar[str] = "all of it, on every step that is left"
    knob: ClassVar[Knob] = Knob("share", 1.0, 0.05)

    share: float = 0.5

    def call(self, call: dict[str, Any]) -> dict[str, Any]:
        return {**call, "num_inference_steps": max(1, round(self.share * int(call["num_inference_steps"])))}

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[Any]:
        return nullcontext()
