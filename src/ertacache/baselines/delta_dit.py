"""Δ-DiT: the rear blocks are skipped in early steps, the front blocks in late steps."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from ertacache.baselines.baseline import Baseline, Knob
from ertacache.baselines.block_ranges import RangeCache
from ertacache.errors import InvalidArgument
from ertacache.pipelines.models import blocks_of, denoiser_of
from ertacache.runtime.hooks import Attachment, attached

#: What floating point adds to whole numbers: 1 / (1 − 2/3) is a little more than 3.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class DeltaDiT(Baseline):
    """Every N-th step runs all blocks; the steps between skip N_c consecutive ones and add their Δ.

    Δ = output − input of the skipped range in the last step that ran it, for image tokens and for the text tokens
    that the blocks update. Before the gate the range is the last N_c blocks (early steps make the outline), after it
    the first N_c. The steps 0, N, 2N, ... run everything; the last step is not treated otherwise than the rest.

    Settings are published for N = 2 alone, which reaches one half at best. N is therefore the least that allows what
    is to be skipped, and N_c follows; a larger N with fewer blocks costs the same and is further from the source.

    The published Open-Sora row (LPIPS .5692, PSNR 11.91) was made with code that adds input − output: the wrong sign.
    Here the sign is right, so the method scores better than that row.

    Args:
        skipped: share of the block runs that are left out, in [0, 1): (1 − 1/N) · N_c / number of blocks, where N_c is
            rounded up.
        interval: N, at least 2; None: the least that allows `skipped`.
        gate: b as a share of the steps, in [0, 1]; the rows for CogVideoX do not give theirs.
        until: share of the steps, in [0, 1], after which none skips anything; `skipped` is that of the steps before.

    Raises:
        InvalidArgument: a setting out of its range, or more to skip than the interval allows.
    """

    key: ClassVar[str] = "delta-dit"
    title: ClassVar[str] = "Δ-DiT"
    paper: ClassVar[str] = "arXiv 2406.01125"
    work: ClassVar[str] = "the embeddings, the blocks outside of the skipped range and the head"
    knob: ClassVar[Knob] = Knob("skipped", 0.0, 0.9)

    skipped: float = 0.5
    interval: int | None = None
    gate: float = 0.5
    until: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.skipped < 1:
            raise InvalidArgument(f"{self.key}: skipped is {self.skipped:g}; choose a share from 0 to below 1")
        for name, value in (("gate", self.gate), ("until", self.until)):
            if not 0 <= value <= 1:
                raise InvalidArgument(f"{self.key}: {name} is {value:g}; choose a share from 0 to 1")
        if self.interval is not None and self.interval < 2:
            raise InvalidArgument(f"{self.key}: interval is {self.interval}; choose 2 or more, since 1 skips nothing")
        if self._share > 1 + _ROUNDING:
            raise InvalidArgument(
                f"{self.key}: skipped is {self.skipped:g}, and an interval of {self.N} skips {1 - 1 / self.N:g} at "
                "most; choose less, or a larger interval"
            )

    @classmethod
    def published(cls) -> Mapping[str, Mapping[str, "DeltaDiT"]]:
        """The rows for CogVideoX-2B, which has 30 blocks; for Open-Sora 1.2 what PAB's authors ran.

        That is the first 6 of 28 pairs of blocks, skipped in the steps 1, 3 and 5 of 30.
        """
        rows = {f"N_c={count}, N=2": cls(skipped=count / 30 / 2, interval=2) for count in (4, 8, 12)}
        sora = cls(skipped=6 / 28 / 2, interval=2, gate=0.0, until=0.2)
        return {"CogVideoXTransformer3DModel": rows, "STDiT3Transformer3DModel": {"videosys": sora}}

    @property
    def N(self) -> int:
        """Steps from one that runs all blocks to the next."""
        return self.interval or max(2, math.ceil(1 / (1 - self.skipped) - _ROUNDING))

    @property
    def _share(self) -> float:
        """N_c as a share of the blocks."""
        return self.skipped / (1 - 1 / self.N)

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        return None if blocks_of(denoiser_of(pipe)) else "its blocks are not known"

    def ranges(self, T: int, blocks: int) -> list[tuple[range, ...]]:
        """The range of blocks that each step skips, none on every N-th.

        N_c is rounded up: rounded down, more to skip could skip less where N changes.
        """
        cached = math.ceil(self._share * blocks - _ROUNDING)
        front, rear = range(cached), range(blocks - cached, blocks)
        gate, end = round(self.gate * T), round(self.until * T)
        return [((rear if i < gate else front),) if cached and i % self.N and i < end else () for i in range(T)]

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[Attachment]:
        blocks = len(blocks_of(denoiser_of(pipe)))
        return attached(pipe, RangeCache(lambda T: self.ranges(T, blocks)))
