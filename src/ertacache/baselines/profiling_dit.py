"""ProfilingDiT: blocks that work on the background are skipped, blocks that work on the foreground always run."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ertacache.baselines.baseline import Baseline, Bench, Knob
from ertacache.baselines.block_ranges import BlockTokens, RangeCache, consecutive
from ertacache.errors import CacheConflict, CalibrationError, InvalidArgument
from ertacache.pipelines.models import blocks_of, denoiser_of
from ertacache.pipelines.overrides import Overrides
from ertacache.runtime.hooks import Attachment, attached
from ertacache.runtime.run import Controller, Run

#: Prompts that are profiled, or all of them where there are fewer.
_PROMPTS = 4
#: For Wan2.1 14B, which has 40 blocks. (The foreground list printed beside it overlaps it; it is not used here.)
_WAN_14B = (0, *range(2, 8), *range(10, 21), *range(25, 33), 37, 38)


@dataclass(frozen=True)
class ProfilingDiT(Baseline):
    """Steps between two computed ones replace each run of neighbouring background blocks by the Δ it had.

    The steps of the warm-up are computed, then one step in `interval`; the last is not treated otherwise than the rest.
    Which blocks work on the background is calibrated, see `foreground_scores`: those with the lowest scores, as many
    as `share` says (the τ of the paper as a quantile). The cost is w + (1 − w) (1 − share · (1 − 1/interval)) of the
    blocks, w the warm-up: with the published interval of 6 about .5 at the published share and .27 at 1.

    Args:
        background: these blocks, whatever the share; None: those that calibration finds.
        scores: per block, from calibration.
        share: of background blocks, in [0, 1]; rounded, at least one unless it is 0. 28 of 40 are published.
        warm_up: s₀ as a share of the steps, in [0, 1]; 6 of 50 are published.
        interval: between computed steps, at least 2; T_max of Eq. 15 where `interval_end` is given.
        interval_end: T_min of Eq. 15, to which the interval falls linearly at the last step; None: it stays, as the
            published code has it.

    Raises:
        InvalidArgument: a setting out of its range.
    """

    key: ClassVar[str] = "profiling-dit"
    title: ClassVar[str] = "ProfilingDiT"
    paper: ClassVar[str] = "arXiv 2504.03140"
    work: ClassVar[str] = "the embeddings, the foreground blocks and the head"
    knob: ClassVar[Knob] = Knob("share", 0.0, 1.0)

    background: tuple[int, ...] | None = None
    scores: tuple[float, ...] | None = None
    share: float = 0.7
    warm_up: float = 0.12
    interval: int = 6
    interval_end: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("warm_up", self.warm_up)):
            if not 0 <= value <= 1:
                raise InvalidArgument(f"{self.key}: {name} is {value:g}; choose a share from 0 to 1")
        if self.interval < 2:
            raise InvalidArgument(f"{self.key}: interval is {self.interval}; choose 2 or more, since 1 skips nothing")
        if self.interval_end is not None and not 1 <= self.interval_end <= self.interval:
            raise InvalidArgument(
                f"{self.key}: interval_end is {self.interval_end}; choose 1 to interval, which is {self.interval}"
            )

    @classmethod
    def published(cls) -> Mapping[str, Mapping[str, "ProfilingDiT"]]:
        """The lists for Wan2.1 14B at 50 steps. None are published for the 1.3B model, which has 30 blocks."""
        return {"WanTransformer3DModel": {"14B": cls(background=_WAN_14B)}}

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        count = len(blocks_of(denoiser_of(pipe)))
        if not count:
            return "its blocks are not known"
        if self.background is not None:
            if absent := [block for block in self.background if not 0 <= block < count]:
                return f"the background list names block {absent[0]}, and this denoiser has {count} blocks"
        elif self.scores is not None and len(self.scores) != count:
            return f"it was calibrated on {len(self.scores)} blocks, and this denoiser has {count}"
        return None

    def calibrated(self, bench: Bench) -> Self:
        """With `scores` measured; as it is where the background blocks are given."""
        if self.background is not None:
            return self
        profile = ForegroundProfile()
        bench.record(profile, _PROMPTS, hidden=True)
        return replace(self, scores=tuple(torch.stack(profile.scores).mean(0).tolist()))

    def at(self, value: float) -> Self:
        if self.background is not None:
            raise InvalidArgument(
                f"{self.key}: its background blocks are given, so there is no share of them to turn; leave "
                "`background` out and calibrate"
            )
        return super().at(value)

    def background_blocks(self) -> tuple[int, ...]:
        """Blocks that are skipped, in order.

        Raises:
            InvalidArgument: they are neither given nor calibrated.
        """
        if self.background is not None:
            return tuple(sorted(self.background))
        if self.scores is None:
            raise InvalidArgument(
                f"{self.key} does not know which blocks work on the background; call calibrated(bench), or give "
                "background=(...)"
            )
        lowest = sorted(range(len(self.scores)), key=self.scores.__getitem__)
        count = max(1, round(self.share * len(lowest))) if self.share else 0
        return tuple(sorted(lowest[:count]))

    def computed_steps(self, T: int) -> tuple[int, ...]:
        """Steps that compute every block: s₀ of them, then by the interval (Eq. 15, rounded)."""
        start = round(self.warm_up * T)
        steps, step = [*range(start)], start
        fall = 0 if self.interval_end is None else self.interval - self.interval_end
        while step < T:
            steps.append(step)
            step += max(1, round(self.interval - fall * (step - start) / max(1, T - 1 - start)))
        return tuple(steps)

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[Attachment]:
        ranges = consecutive(self.background_blocks())

        def plan(T: int) -> list[tuple[range, ...]]:
            computed = self.computed_steps(T)
            return [() if i in computed else ranges for i in range(T)]

        return attached(pipe, RangeCache(plan))


class ForegroundProfile(Controller):
    """Watches uncached runs of one prompt each.

    Attributes:
        scores: per run [blocks] float32, see `foreground_scores`.
    """

    several = False

    def __init__(self) -> None:
        self.scores: list[Tensor] = []
        self._energy: dict[int, Tensor] = {}
        self._residual: Tensor | None = None
        self._watching = False

    def install(self, overrides: Overrides, denoiser: nn.Module) -> None:
        for index, block in enumerate(blocks_of(denoiser)):
            overrides.replace_part(block, self._wrapper(index, BlockTokens(block)))

    def begin(self, run: Run) -> None:
        self._energy.clear()
        self._residual = None

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        # The prompt's own branch: the first of two calls, the second half of a batched one.
        self._watching = len(run.contexts) == 1
        output = compute()
        if self._watching and run.step >= run.T // 2:
            if run.stack is None:
                raise CacheConflict("blocks are profiled at site 'hidden' only; record with hidden=True")
            residual = run.stack.take_residual()[-1].float()
            self._residual = residual if self._residual is None else self._residual + residual
        return output

    def end_step(self, run: Run, x_next: Tensor) -> None:
        if run.step == run.T - 1 and self._residual is not None:
            energy = torch.stack([self._energy[index] for index in sorted(self._energy)])
            # A sum stands for the mean over the steps: the threshold does not depend on its scale.
            self.scores.append(foreground_scores(energy, foreground(self._residual)).cpu())
            self._energy.clear()
            self._residual = None

    def _wrapper(self, index: int, tokens: BlockTokens) -> Callable[..., Any]:
        def call(original: Callable[..., Any], _: nn.Module, *args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            if self._watching:
                update = tokens.returned(output)[0][-1].float() - tokens.taken(args, kwargs)[0][-1].float()
                energy = update.square().sum(-1)
                self._energy[index] = self._energy[index] + energy if index in self._energy else energy
            return output

        return call


def foreground(residual: Tensor) -> Tensor:
    """Which tokens show the foreground, estimated without a segmentation model.

    The paper marks them with SAM2 on the principal components of the predicted noise. Here the tokens are projected on
    the first principal component of what the block stack adds to them, and cut in two by Otsu's threshold; the
    smaller part is the foreground.

    Args:
        residual: [N, D] of the block stack for one prompt, its mean over the late half of the steps.

    Returns:
        [N] bool.

    Raises:
        CalibrationError: all tokens are the same.
    """
    centred = (residual - residual.mean(0)).double().cpu()
    projection = centred @ torch.linalg.eigh(centred.T @ centred)[1][:, -1]
    upper = projection > otsu(projection)
    return (upper if 2 * int(upper.sum()) <= len(upper) else ~upper).to(residual.device)


def otsu(values: Tensor) -> float:
    """The cut of values [N] in two with the largest variance between the parts (Otsu 1979), without a histogram.

    Raises:
        CalibrationError: all values are the same.
    """
    ordered, count = values.sort().values, len(values)
    if count < 2 or ordered[0] == ordered[-1]:
        raise CalibrationError(
            "the denoiser treats all tokens alike, so they cannot be split into foreground and background; give "
            "background=(...), or other prompts"
        )
    below = torch.arange(1, count, device=values.device, dtype=values.dtype)
    sums = ordered.cumsum(0)[:-1]
    gap = sums / below - (ordered.sum() - sums) / (count - below)
    cut = int((below * (count - below) * gap.square()).argmax())
    return float(ordered[cut])


def foreground_scores(energy: Tensor, mask: Tensor) -> Tensor:
    """How much more than its part of the tokens the foreground gets of each block's work.

    The paper counts foreground tokens among those with high attention. Here it is Σ ‖Δ_b‖² over the foreground tokens,
    as a share of all tokens', over the foreground's share of the tokens: 1 is no preference.

    Args:
        energy: [blocks, N], ‖Δ_b‖² of every block and image token, summed over the steps.
        mask: [N] bool, the foreground.

    Returns:
        [blocks].
    """
    # A block that does nothing is no foreground block.
    total = energy.sum(1).clamp_min(torch.finfo(energy.dtype).tiny)
    return energy[:, mask].sum(1) / total / mask.float().mean()
