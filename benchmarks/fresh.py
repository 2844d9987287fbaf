"""What a profile is worth on prompts that its calibration has not seen."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.metrics import PairedMetrics
from ertacache.profile.profile import Profile
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller
from ertacache.runtime.run_stats import RunStats

BATCH = 8


@dataclass
class Fresh:
    """Prompts that judge, and the uncached run of them, made once.

    Args:
        call: arguments of the pipeline call.
    """

    pipe: Any
    prompts: Prompts
    call: dict[str, Any]

    @cached_property
    def reference(self) -> Tensor:
        """[B, 3, H, W], or [B, F, 3, H, W] of clips."""
        return self._images(Controller())

    def psnr(self, profile: Profile) -> list[float]:
        """PSNR of every prompt under a profile against the uncached run, in dB."""
        return self._against(self._images(Player(profile, RunStats(), keep_nan=True), hidden=profile.site == "hidden"))

    def fewer_steps(self, K: int) -> list[float]:
        """PSNR of every prompt in a run of K solver steps against the uncached run, in dB."""
        return self._against(self._images(Controller(), num_inference_steps=K))

    def _against(self, images: Tensor) -> list[float]:
        metrics = PairedMetrics()
        metrics.update(images.nan_to_num(0.0), self.reference)
        return [round(value, 4) for value in metrics.state()["psnr"]]

    def _images(self, controller: Controller, hidden: bool = False, **other: Any) -> Tensor:
        call, parts = {**self.call, **other}, self.prompts.batches(BATCH)
        return torch.cat([run_pipeline(self.pipe, part, controller, call, hidden=hidden) for part in parts])
