"""Consecutive blocks that are skipped: what they added to their input is kept and added again."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from ertacache.errors import CacheConflict, UnsupportedPipeline
from ertacache.pipelines.models import blocks_of
from ertacache.pipelines.overrides import Overrides, Wrapper
from ertacache.runtime.run import Controller, Run

#: T -> for each step the ranges of blocks that it skips; none on a step that computes every block.
Plan = Callable[[int], Sequence[tuple[range, ...]]]


class BlockTokens:
    """Where a block takes and returns its tokens: image tokens and, where it updates them, text tokens.

    Raises:
        UnsupportedPipeline: diffusers does not tell it of this class.
    """

    def __init__(self, block: nn.Module) -> None:
        from diffusers.hooks._helpers import TransformerBlockRegistry

        try:
            self._row: Any = TransformerBlockRegistry.get(type(block))
        except ValueError as error:
            raise UnsupportedPipeline(
                f"the arguments of a block of class {type(block).__name__} are not known; use a method that works on "
                "whole steps"
            ) from error
        self._hidden_at: int = self._row.return_hidden_states_index
        self._text_at: int | None = self._row.return_encoder_hidden_states_index

    def taken(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        """The image tokens [B, N, D] and, where they are updated, the text tokens [B, S, D] of a call."""
        names = [self._row.hidden_states_argument_name]
        if self._text_at is not None:
            names.append(self._row.encoder_hidden_states_argument_name)
        return tuple(self._row._get_parameter_from_args_kwargs(name, args, kwargs) for name in names)

    def returned(self, output: Any) -> tuple[Tensor, ...]:
        """The same tokens in what the block returned."""
        if self._text_at is None:
            return (output if isinstance(output, Tensor) else output[self._hidden_at],)
        return output[self._hidden_at], output[self._text_at]

    def as_output(self, tokens: tuple[Tensor, ...]) -> Any:
        """Tokens as the block would return them."""
        if self._text_at is None:
            return tokens[0]
        return tokens if self._hidden_at < self._text_at else tokens[::-1]


class BlockRanges:
    """Ranges of a denoiser's blocks that can be replaced by the Δ they had: Δ = output − input of the range.

    Args:
        blocks: in the order they run. A range may go over several lists of blocks.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks = blocks
        self._deltas: dict[tuple[str, range], tuple[Tensor, ...]] = {}
        self._entries: dict[range, tuple[Tensor, ...]] = {}
        self._ranges: tuple[range, ...] = ()
        self._context = ""
        self._reuse = False
        self._passed = 0

    def install(self, overrides: Overrides) -> None:
        """Wrap every block on its instance."""
        for index, block in enumerate(self._blocks):
            overrides.replace_part(block, self._wrapper(index, BlockTokens(block)))

    def clear(self) -> None:
        """Drop every Δ."""
        self._deltas.clear()

    def holds(self, context: str, ranges: Iterable[range]) -> bool:
        """Whether the Δ of all these ranges is there for a context."""
        return all((context, span) in self._deltas for span in ranges)

    def compute(self, context: str, ranges: tuple[range, ...], compute: Callable[[], Tensor]) -> Tensor:
        """A denoiser call that runs every block; the Δ of these ranges, which may overlap, is kept.

        What the context had before is dropped.

        Raises:
            CacheConflict: the blocks ran without passing by here.
        """
        self._deltas = {key: delta for key, delta in self._deltas.items() if key[0] != context}
        return self._call(context, ranges, compute, reuse=False)

    def reuse(self, context: str, ranges: tuple[range, ...], compute: Callable[[], Tensor]) -> Tensor:
        """A denoiser call with Δ in place of these ranges, which do not overlap; the other blocks run.

        Raises:
            CacheConflict: the blocks ran without passing by here.
        """
        return self._call(context, ranges, compute, reuse=True)

    def _call(self, context: str, ranges: tuple[range, ...], compute: Callable[[], Tensor], reuse: bool) -> Tensor:
        self._context, self._ranges, self._reuse, self._passed = context, ranges, reuse, 0
        try:
            output = compute()
        finally:
            self._ranges = ()
            self._entries.clear()
        if self._passed != len(ranges):
            raise CacheConflict(
                "the blocks ran without passing by the cache; leave its `with` block, finish changing the denoiser "
                "(compile, offload), then apply it again"
            )
        return output

    def _wrapper(self, index: int, tokens: BlockTokens) -> Wrapper:
        def call(original: Callable[..., Any], _: nn.Module, *args: Any, **kwargs: Any) -> Any:
            here = [span for span in self._ranges if index in span]
            if not here:
                return original(*args, **kwargs)
            before = tokens.taken(args, kwargs)
            self._entries.update({span: before for span in here if index == span.start})
            ending = [span for span in here if index == span.stop - 1]
            self._passed += len(ending)
            if self._reuse:
                return tokens.as_output(self._with_delta(ending[0]) if ending else before)
            output = original(*args, **kwargs)
            for span in ending:
                pairs = zip(tokens.returned(output), self._entries.pop(span), strict=True)
                self._deltas[self._context, span] = tuple(end - start for end, start in pairs)
            return output

        return call

    def _with_delta(self, span: range) -> tuple[Tensor, ...]:
        # From the entry of the range: Δ already holds what was added between its blocks.
        pairs = zip(self._entries.pop(span), self._deltas[self._context, span], strict=True)
        return tuple(start + delta for start, delta in pairs)


class RangeCache(Controller):
    """Skips what a plan says. A computed step keeps what the steps after it need, up to the next computed one.

    A step whose Δ is not there (after a late start, image to image) is computed.
    """

    several = False

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._skipped: Sequence[tuple[range, ...]] = ()
        self._ranges = BlockRanges(())

    def install(self, overrides: Overrides, denoiser: nn.Module) -> None:
        self._ranges = BlockRanges(blocks_of(denoiser))
        self._ranges.install(overrides)

    def begin(self, run: Run) -> None:
        self._ranges.clear()
        self._skipped = self._plan(run.T)

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        skipped = self._skipped[run.step]
        if skipped and self._ranges.holds(context, skipped):
            return self._ranges.reuse(context, skipped, compute)
        return self._ranges.compute(context, self._needed_after(run.step), compute)

    def end_step(self, run: Run, x_next: Tensor) -> None:
        if run.step == run.T - 1:
            self._ranges.clear()  # the decoder may need the room

    def _needed_after(self, step: int) -> tuple[range, ...]:
        needed: dict[range, None] = {}
        for skipped in self._skipped[step + 1 :]:
            if not skipped:
                break
            needed.update(dict.fromkeys(skipped))
        return tuple(needed)


def consecutive(blocks: Iterable[int]) -> tuple[range, ...]:
    """Indices of blocks as the longest ranges of neighbours: 0, 2, 3 -> range(0, 1), range(2, 4)."""
    ranges: list[range] = []
    for block in sorted(set(blocks)):
        if ranges and ranges[-1].stop == block:
            ranges[-1] = range(ranges[-1].start, block + 1)
        else:
            ranges.append(range(block, block + 1))
    return tuple(ranges)
