"""How much the output of a transformer moves without each of its parts, measured on recorded calls."""

import copy
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ertacache.errors import InvalidArgument
from ertacache.pipelines.models import denoiser_of, unwrapped
from ertacache.split.weight_axes import layout_of, readers, sizes_of

#: Share of a module that is kept while its own significance is measured.
PROBE = 0.5

#: The arguments of recorded calls of a denoiser, by name.
Calls = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Significance:
    """How much the output moves without a part.

    Attributes:
        blocks: of each block stack by name, the shift of the model's output without each block.
        heads: of each attention module by name, the shift of the model's output without each head.
        channels: of every other axis that is chosen along (width of the model, hidden units of feed-forward layers and
            embedders), the shift of the outputs of the layers that read it, without each channel.
    """

    blocks: dict[str, Tensor]
    heads: dict[str, Tensor]
    channels: dict[str, Tensor]


def record_calls(pipe: Any, call: Mapping[str, Any], every: int = 1) -> list[dict[str, Any]]:
    """The arguments of every `every`-th denoiser call of a run, beginning with the first.

    Raises:
        InvalidArgument: `every` is less than 1. UnsupportedPipeline: the pipeline has no denoiser, or several.
    """
    if every < 1:
        raise InvalidArgument(f"every is {every}; record each call (1) or every 2nd, 3rd, ...")
    calls: list[dict[str, Any]] = []

    def keep(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        calls.append({key: value for key, value in kwargs.items() if key != "return_dict"})

    handle = denoiser_of(pipe).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        pipe(**call)
    finally:
        handle.remove()
    return calls[::every]


def output_shift(whole: Sequence[Tensor], pruned: Sequence[Tensor]) -> float:
    """‖difference of the means‖ + ‖difference of the standard deviations‖ over the batch, summed over the calls.

    The paper's measure, there of final latents. Of a batch of one it is the norm of the difference.

    Args:
        whole, pruned: outputs [B, *] of the same calls.
    """
    total = 0.0
    for a, b in zip(whole, pruned, strict=True):
        mean = (a.double().mean(0) - b.double().mean(0)).norm()
        spread = (a.double().std(0, correction=0) - b.double().std(0, correction=0)).norm()
        total += float(mean + spread)
    return total


@torch.no_grad()
def significance(model: nn.Module, calls: Calls) -> Significance:
    """Measure every block, head and channel of a FLUX or Wan transformer on recorded calls.

    It takes one evaluation of the calls for each block and each head. The model is left as it is.

    Raises:
        InvalidArgument: no calls. UnsupportedPipeline: another class of model, or parts of it that are not known.
    """
    probe = _Probe(model, calls)
    blocks = {
        name: torch.tensor([probe.shift_without_block(name, n) for n in range(len(getattr(probe.model, name)))])
        for name, _ in probe.layout.block_lists
    }
    width = probe.head_width
    heads = {
        space: torch.tensor(
            [probe.shift_without(space, elements(torch.tensor([n]), width)) for n in range(size // width)]
        )
        for space, size in probe.sizes.items()
        if _is_attention(space)
    }
    return Significance(blocks, heads, probe.channels())


@torch.no_grad()
def unit_significance(model: nn.Module, calls: Calls, found: Significance) -> dict[str, float]:
    """The shift of the output with each attention module and feed-forward layer alone at half of its width.

    Raises:
        InvalidArgument: no calls. UnsupportedPipeline: as `significance`.
    """
    probe = _Probe(model, calls)
    return {unit: probe.shift_without(unit, least_of(unit, found, PROBE, probe.head_width)) for unit in units_of(found)}


def units_of(found: Significance) -> list[str]:
    """Attention modules and feed-forward layers of all blocks: what lies in a numbered block."""
    return [space for space in (*found.heads, *found.channels) if re.search(r"blocks\.\d+\.", space)]


def least_of(unit: str, found: Significance, share: float, width: int) -> Tensor:
    """The least significant places of a unit, all but `share` of it."""
    scores = found.heads.get(unit, found.channels.get(unit, torch.zeros(0)))
    count = len(scores) - max(1, share_of(share, len(scores), unit, least=0))
    least = scores.argsort(stable=True)[:count].sort().values
    return elements(least, width) if unit in found.heads else least


def largest(scores: Tensor, count: int) -> Tensor:
    """The places of the `count` largest scores, ascending; of equal ones the later."""
    return scores.argsort(stable=True)[len(scores) - count :].sort().values


def elements(heads: Tensor, width: int) -> Tensor:
    return (heads[:, None] * width + torch.arange(width)).flatten()


def share_of(ratio: float, whole: int, what: str, least: int = 1) -> int:
    """`ratio` of `whole`, rounded."""
    if not 0 < ratio <= 1 or round(ratio * whole) < least:
        raise InvalidArgument(f"ratio is {ratio}, of {whole} {what}; give a share in (0, 1] that leaves one")
    return round(ratio * whole)


class _Probe:
    """A model on recorded calls, as it is and without parts."""

    def __init__(self, model: nn.Module, calls: Calls) -> None:
        self.layout, self.model, self.calls = layout_of(model), unwrapped(model), calls
        if not calls:
            raise InvalidArgument("no calls to measure on; record some with record_calls(pipe, call)")
        self.state: dict[str, Tensor] = self.model.state_dict()
        self.sizes = sizes_of(self.layout, self.state)
        self.head_width: int = getattr(self.model, "config", {})["attention_head_dim"]
        self._whole = self._outputs(self.model, {})

    def shift_without(self, space: str, indexes: Tensor) -> float:
        """With these places of a space read by nobody."""
        masked: dict[str, Tensor] = {}
        for key, part in readers(self.layout, self.state, space):
            masked[key] = self.state[key].clone()
            masked[key][:, part.start + indexes] = 0
        return output_shift(self._whole, self._outputs(self.model, masked))

    def shift_without_block(self, name: str, number: int) -> float:
        """With the others of its stack alone, in a shell around the same modules."""
        shell = copy.copy(self.model)
        blocks = [block for n, block in enumerate(getattr(self.model, name)) if n != number]
        vars(shell)["_modules"] = {**vars(self.model)["_modules"], name: nn.ModuleList(blocks)}
        return output_shift(self._whole, self._outputs(shell, {}))

    def channels(self) -> dict[str, Tensor]:
        """The shift (root mean square over all places of the calls) of what reads each channel of each space."""
        power: dict[str, Tensor] = {}
        sizes: dict[str, int] = {}
        spaces = [space for space in self.sizes if not _is_attention(space)]
        read = {key for space in spaces for key, _ in readers(self.layout, self.state, space)}

        def add(key: str, _module: nn.Module, given: tuple[Tensor, ...]) -> None:
            rows = given[0].detach().flatten(0, -2).double()
            power[key] = power.get(key, 0) + rows.square().sum(0)
            sizes[key] = sizes.get(key, 0) + len(rows)

        with ExitStack() as stack:
            for key in read:
                module = self.model.get_submodule(key.removesuffix(".weight"))
                stack.callback(module.register_forward_pre_hook(partial(add, key)).remove)
            self._outputs(self.model, {})
        moved = {key: (power[key] / sizes[key]) * self.state[key].double().square().sum(0) for key in read}
        return {
            space: sum((moved[key][part] for key, part in readers(self.layout, self.state, space)), torch.zeros(()))
            .sqrt().float().cpu()
            for space in spaces
        }  # fmt: skip

    def _outputs(self, model: nn.Module, weights: dict[str, Tensor]) -> list[Tensor]:
        given = ({**call, "return_dict": False} for call in self.calls)
        return [functional_call(model, weights, (), call)[0] for call in given]


def _is_attention(space: str) -> bool:
    return re.search(r"\.attn[12]?$", space) is not None
