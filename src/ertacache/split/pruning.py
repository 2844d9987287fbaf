"""Structural pruning of a transformer: what moves its output least is taken out (Hybrid SD, arXiv 2408.06646)."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ertacache.errors import InvalidArgument
from ertacache.pipelines.models import unwrapped
from ertacache.split.significance import Significance, elements, largest, least_of, share_of, units_of
from ertacache.split.weight_axes import Layout, chosen, layout_of, sizes_of

#: Share of a module that is kept, by its rank, the least significant first.
RATIOS = (0.25, 0.5, 0.75)


def prune(model: nn.Module, found: Significance, ratio: float = 1.0, blocks: Sequence[int] | None = None) -> nn.Module:
    """A smaller model of the same class, with a configuration of its own: it is saved and loaded as any other.

    These classes have one number of heads and one width for all blocks, so every module keeps the same share.

    Args:
        model: a FLUX or Wan transformer. found: of that model.
        ratio: share in (0, 1] of the heads, and with them of the width and of feed-forward units, that is kept.
        blocks: how many of each block stack are kept; all by default.

    Raises:
        InvalidArgument: less than one head or more blocks than there are.
        UnsupportedPipeline: another class of model, or parts of it that are not known.
    """
    layout, inner = layout_of(model), unwrapped(model)
    config: dict[str, Any] = dict(getattr(inner, "config", {}))
    width, heads = config["attention_head_dim"], share_of(ratio, config["num_attention_heads"], "heads")
    stays: dict[str, list[int]] = {}
    for (name, entry), count in zip(layout.block_lists, _block_counts(layout, config, blocks), strict=True):
        stays[name] = largest(found.blocks[name], count).tolist()
        config[entry] = count
    config["num_attention_heads"] = heads
    if layout.feed_forward is not None:
        config[layout.feed_forward] = share_of(ratio, config[layout.feed_forward], "feed-forward units")
    with torch.random.fork_rng():
        build: Any = type(inner)
        small = build.from_config(config)
    kept = {space: elements(largest(scores, heads), width) for space, scores in _left(found.heads, stays).items()}
    goals = sizes_of(layout, small.state_dict())
    kept |= {space: largest(scores, goals[space]) for space, scores in _left(found.channels, stays).items()}
    small.load_state_dict(chosen(layout, _left(inner.state_dict(), stays), kept), assign=True)
    return small.to(next(inner.parameters()).device).train(inner.training)


def ratios_by_rank(scores: Mapping[str, float], bounds: tuple[int, int] | None = None) -> dict[str, float]:
    """The share of each unit that is kept: a quarter of the least significant ones, then half, then three quarters.

    Args:
        scores: of units by name. bounds: ranks at which the second and the third share begin; by default those of the
            paper's 28 units, 19 and 21, in proportion.

    Raises:
        InvalidArgument: bounds that do not rise from 0 to the number of units.
    """
    count = len(scores)
    first, second = bounds or (round(count * 19 / 28), round(count * 21 / 28))
    if not 0 <= first <= second <= count:
        raise InvalidArgument(f"bounds are {first}, {second}; two ranks from 0 to {count} units, the smaller one first")
    ranked = sorted(scores, key=lambda unit: scores[unit])
    shares = [RATIOS[(rank >= first) + (rank >= second)] for rank in range(count)]
    return dict(zip(ranked, shares, strict=True))


def narrow(model: nn.Module, found: Significance, shares: Mapping[str, float]) -> nn.Module:
    """A copy with modules of different widths, as the paper's models are; at least one head each.

    The class is the same, but its configuration has no entry for such widths: keep it with `torch.save`, as a whole.

    Args:
        model: a FLUX or Wan transformer. found: of that model. shares: of `ratios_by_rank`, in (0, 1].

    Raises:
        InvalidArgument: a name or share that is not one. UnsupportedPipeline: as `significance`.
    """
    layout, small = layout_of(model), copy.deepcopy(unwrapped(model))
    width: int = getattr(small, "config", {})["attention_head_dim"]
    kept: dict[str, Tensor] = {}
    for unit, share in shares.items():
        if unit not in units_of(found):
            raise InvalidArgument(f"no unit {unit!r}; there are {', '.join(units_of(found))}")
        everything = torch.arange(sizes_of(layout, small.state_dict())[unit])
        kept[unit] = everything[~torch.isin(everything, least_of(unit, found, share, width))]
    state = chosen(layout, small.state_dict(), kept)
    for place, module in small.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(state[f"{place}.{name}".lstrip(".")], parameter.requires_grad))
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.RMSNorm):
            module.normalized_shape = tuple(module.weight.shape)
        elif place in kept and place in found.heads:
            setattr(module, "heads", len(kept[place]) // width)  # noqa: B010
    return small


def _block_counts(layout: Layout, config: Mapping[str, Any], blocks: Sequence[int] | None) -> list[int]:
    whole = [int(config[entry]) for _, entry in layout.block_lists]
    if blocks is None:
        return whole
    if len(blocks) != len(whole) or not all(0 <= count <= most for count, most in zip(blocks, whole, strict=True)):
        names = ", ".join(f"{name} has {most}" for (name, _), most in zip(layout.block_lists, whole, strict=True))
        raise InvalidArgument(f"blocks is {tuple(blocks)}; give how many are kept of each stack: {names}")
    return list(blocks)


def _left(named: Mapping[str, Tensor], stays: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Without what lies in blocks that go, under the numbers that the others have then."""
    result: dict[str, Tensor] = {}
    for key, value in named.items():
        stack, _, rest = key.partition(".")
        if stack in stays:
            number, _, rest = rest.partition(".")
            if int(number) not in stays[stack]:
                continue
            key = f"{stack}.{stays[stack].index(int(number))}.{rest}"
        result[key] = value
    return result
