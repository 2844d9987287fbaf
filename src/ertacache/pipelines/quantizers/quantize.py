"""Quantising the denoisers of a pipeline in place, or of a copy."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ertacache.errors import InvalidArgument
from ertacache.pipelines.models import denoisers_of, unwrapped
from ertacache.pipelines.quantizers.fake import FakeQuantLinear
from ertacache.pipelines.quantizers.grids import turn_of
from ertacache.pipelines.quantizers.layers import DEFAULT_SKIP, check_layers, check_skip, check_undo, linears_of
from ertacache.pipelines.quantizers.record import is_live, mark, marked, quantizer_of, unmark, words_of
from ertacache.pipelines.quantizers.scheme import GROUP, Scheme, torchao


def quantize(
    target: Any, scheme: str | Scheme, *, skip: Sequence[str] = DEFAULT_SKIP, group: int = GROUP
) -> Callable[[], None]:
    """Quantise a pipeline's denoisers, or one denoiser, in place; before offloading, compiling and profiles.

    Weights are rounded once, activations in every call. The rounding of w4a4 and its like is simulated: it shows what a
    quantiser loses, and saves neither time nor memory; torchao's saves both.

    Args:
        target: a pipeline, or a denoiser itself.
        scheme: see `Scheme`.
        skip: patterns of names of linear layers that stay as they are; see `DEFAULT_SKIP`.
        group: entries that share a scale, for the schemes that have groups.

    Returns:
        A function that undoes it, bit for bit: the original layers, in the dtype and place that the model has by then,
        and under the adapters that it carries. It refuses what was fused in or offloaded since (InvalidArgument). It
        keeps the original weights: drop it to free them.

    Raises:
        InvalidArgument: an unknown scheme, a denoiser that is quantised already, and as `check_layers`, `check_skip`.
        UnsupportedPipeline: no denoiser, no layer to quantise, or several grids for one that is given no timestep.
        MissingExtra: torchao is not there.
    """
    kind = scheme if isinstance(scheme, Scheme) else Scheme.parse(scheme)
    kind.check_here()
    denoisers, record = planned(target, kind, skip, group)
    layers, undo = dict[str, nn.Linear](), list[Callable[[], None]]()

    def undone() -> None:
        while undo:
            undo.pop()()

    def checked() -> None:
        if undo:
            check_undo(denoisers, layers)
        undone()

    try:
        for denoiser in denoisers:
            layers |= _apply(denoiser, record, undo, rounded=False)
    except BaseException:  # also Ctrl-C: half a model is quantised by then
        undone()
        raise
    return checked


def quantized_copy(pipe: Any, scheme: str | Scheme, *, skip: Sequence[str] = DEFAULT_SKIP, group: int = GROUP) -> Any:
    """A pipeline that shares all but its denoisers, which are quantised copies, and its scheduler.

    Raises:
        InvalidArgument, UnsupportedPipeline, MissingExtra: as `quantize`.
    """
    copied = copy.copy(pipe)
    parts = [
        name for name in ("transformer", "transformer_2", "unet") if isinstance(getattr(pipe, name, None), nn.Module)
    ]
    # In one go: a module that is there twice is copied once.
    for name, part in copy.deepcopy({name: getattr(pipe, name) for name in (*parts, "scheduler")}).items():
        setattr(copied, name, part)
    quantize(copied, scheme, skip=skip, group=group)
    return copied


def planned(
    target: Any, scheme: Scheme, skip: Sequence[str], group: int
) -> tuple[tuple[nn.Module, ...], dict[str, Any]]:
    """The denoisers and what their configurations will say; everything is checked and nothing changed.

    Raises:
        InvalidArgument, UnsupportedPipeline: as `quantize`.
    """
    denoisers = tuple(dict.fromkeys(unwrapped(one) for one in _denoisers(target)))
    for denoiser in denoisers:
        if (found := quantizer_of(denoiser)) is not None:
            raise InvalidArgument(
                f"{type(denoiser).__name__} is quantised already ({words_of(found)}); load the model that it was "
                "made from"
            )
    if type(group) is not int or group < 1:
        raise InvalidArgument(f"group is {group!r}; use 1 or more entries, such as {GROUP}")
    patterns = check_skip(denoisers, skip)
    for denoiser in denoisers:
        check_layers(denoiser, linears_of(denoiser, patterns), scheme, group)
        turn_of(denoiser, scheme.grids)
    return denoisers, {"scheme": scheme.name, "group": group, "skip": list(patterns)}


def restore(pipe: Any) -> None:
    """Quantise what was saved quantised and has just been loaded; a plain pipeline stays as it is.

    Raises:
        InvalidArgument: a configuration that says it in other words.
        MissingExtra: torchao is not there.
    """
    for denoiser in map(unwrapped, _denoisers(pipe)):
        record = marked(denoiser)
        if record is not None and not is_live(denoiser, record):
            scheme = Scheme.parse(record["scheme"])
            scheme.check_here()
            check_layers(denoiser, linears_of(denoiser, record["skip"]), scheme, record["group"])
            _apply(denoiser, record, [], rounded=scheme.stored)


def _denoisers(target: Any) -> tuple[nn.Module, ...]:
    return (target,) if isinstance(target, nn.Module) else denoisers_of(target)


def _apply(
    denoiser: nn.Module, record: Mapping[str, Any], undo: list[Callable[[], None]], *, rounded: bool
) -> dict[str, nn.Linear]:
    """Quantise what was checked; returns the layers that compute so now.

    Args:
        undo: gets what undoes each part, to be called from the last to the first.
    """
    scheme, layers = Scheme.parse(record["scheme"]), linears_of(denoiser, record["skip"])
    undo.append(lambda: unmark(denoiser))
    if scheme.bits is None:
        exact = {layer.weight for layer in layers.values()}
        others = [weight for weight in denoiser.parameters() if weight not in exact]
        undo += [_weight_undo(layer, others) for layer in set(layers.values())]
        config = scheme.torchao_config(record["group"])
        torchao().quantize_(denoiser, config, filter_fn=lambda module, name: name in layers)
    else:
        turn = turn_of(denoiser, scheme.grids)
        made = {
            layer: FakeQuantLinear(layer, scheme.bits, record["group"], round_weights=not rounded, turn=turn)
            for layer in dict.fromkeys(layers.values())
        }
        if turn is not None:
            undo.append(denoiser.register_forward_pre_hook(turn, with_kwargs=True).remove)
        undo.append(lambda: _put_back(denoiser, {one: layer for layer, one in made.items()}))
        for name, layer in layers.items():
            denoiser.set_submodule(name, made[layer])
        layers |= {name: made[layer] for name, layer in layers.items()}
    mark(denoiser, record)
    return layers


def _put_back(denoiser: nn.Module, exact: Mapping[nn.Module | None, nn.Linear]) -> None:
    """The exact layer for each quantised one, wherever that is by now: an adapter holds it within itself."""
    for one, layer in exact.items():
        if isinstance(one, nn.Linear):
            layer.to(one.weight.device, one.weight.dtype).train(one.training)
            layer.weight.requires_grad_(one.weight.requires_grad)
    for parent in list(denoiser.modules()):
        children: dict[str, nn.Module | None] = vars(parent)["_modules"]
        children.update({name: exact[child] for name, child in children.items() if child in exact})


def _weight_undo(layer: nn.Linear, others: Sequence[nn.Parameter]) -> Callable[[], None]:
    """Packed weights keep their dtype wherever the model is cast to, which one of `others` tells."""
    weight, before = layer.weight, vars(layer).get("extra_repr")
    like = next((one for one in others if one.dtype == weight.dtype), None)

    def undo() -> None:
        packed, layer.weight = layer.weight, weight
        layer.to(packed.device, weight.dtype if like is None else like.dtype)
        vars(layer).pop("extra_repr", None)
        if before is not None:
            vars(layer)["extra_repr"] = before

    return undo
