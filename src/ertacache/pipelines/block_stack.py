"""The block stack of a denoiser, which can be asked to add a given residual instead of running."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ertacache.errors import CacheConflict, UnsupportedPipeline
from ertacache.pipelines.models import Family, blocks_of
from ertacache.pipelines.overrides import Overrides, Wrapper


class BlockStack:
    """Site `hidden`: from the input of the first block to the output of the last one.

    It notes what belongs to one call, so that one call at a time may be under way: plain attributes, which a compiler
    can trace along with the blocks.

    Attributes:
        residual: what the stack added to its input [B, N, D] in the last call that ran the blocks.
        on_entry: asked at the first block of every call, with that block and the arguments it was called with; a
            residual that it returns takes the place of the blocks in this call. For methods that decide there.
    """

    def __init__(self, denoiser: nn.Module, family: Family) -> None:
        if not family.block_lists:
            raise UnsupportedPipeline(
                f"site 'hidden' is not known for {type(denoiser).__name__}; use site 'output' or 'guided'"
            )
        self._blocks = blocks_of(denoiser)
        self._entry: Tensor | None = None
        self._substitute: Tensor | None = None
        self._taken = False
        self.residual: Tensor | None = None
        self.on_entry: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Tensor | None] | None = None
        self._answer: Tensor | None = None

    @property
    def entry(self) -> Tensor:
        """What the first block was given [B, N, D], while `on_entry` is asked.

        Raises:
            CacheConflict: at any other time.
        """
        if self._entry is None:
            raise CacheConflict("the block stack has an entry only while its first block is entered")
        return self._entry

    def with_residual(self, residual: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Run a denoiser call with `residual` in place of the blocks: embeddings and head still run.

        Raises:
            CacheConflict: the blocks ran all the same.
        """
        self._substitute, self._taken = residual, False
        try:
            output = compute()
        finally:
            self._substitute = None
        if not self._taken:
            raise self.bypassed()
        return output

    def take_residual(self) -> Tensor:
        """The residual [B, N, D] of the call just made; it is not kept.

        Raises:
            CacheConflict: there is none.
        """
        residual = self.drop_residual()
        if residual is None:
            raise self.bypassed()
        return residual

    def drop_residual(self) -> Tensor | None:
        """The residual [B, N, D] of the call just made, if there is one; it is not kept."""
        residual, self.residual = self.residual, None
        return residual

    @staticmethod
    def bypassed() -> CacheConflict:
        """The error for blocks that did not pass by here."""
        return CacheConflict(
            "the blocks ran without passing by site 'hidden'; disable the profile, finish changing the denoiser "
            "(compile, offload), then apply it again, or use site 'output' or 'guided'"
        )

    def install(self, overrides: Overrides) -> None:
        """Wrap every block on its instance."""
        for block in self._blocks:
            overrides.replace_part(block, self._wrapper(block))

    def _wrapper(self, block: nn.Module) -> Wrapper:
        from diffusers.hooks._helpers import TransformerBlockRegistry

        try:
            row: Any = TransformerBlockRegistry.get(type(block))
        except ValueError as error:
            raise UnsupportedPipeline(
                f"site 'hidden' is not known for a block of class {type(block).__name__}; use site 'output' or 'guided'"
            ) from error
        first, last = block is self._blocks[0], block is self._blocks[-1]
        hidden_at, text_at = row.return_hidden_states_index, row.return_encoder_hidden_states_index

        def call(original: Callable[..., Any], block: nn.Module, *args: Any, **kwargs: Any) -> Any:
            read = row._get_parameter_from_args_kwargs
            hidden: Tensor = read(row.hidden_states_argument_name, args, kwargs)
            entry = self._entry = hidden if first or self._entry is None else self._entry
            if first and self.on_entry is not None:
                self._answer = self.on_entry(block, args, kwargs)
            substitute = self._answer if self._substitute is None else self._substitute
            if last:
                self._entry = self._answer = None
            if substitute is None:
                output = original(*args, **kwargs)
                if last:
                    self.residual = (output if isinstance(output, Tensor) else output[hidden_at]) - entry
                return output
            if last:
                # From the entry, not from `hidden`: the residual already holds what was added between the blocks.
                hidden, self._taken = entry + substitute, True
            if text_at is None:
                return hidden
            text = read(row.encoder_hidden_states_argument_name, args, kwargs)
            return (hidden, text) if hidden_at < text_at else (text, hidden)

        return call
