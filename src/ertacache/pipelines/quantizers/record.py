"""How a denoiser is quantised: what its configuration says of it, and what its weights show."""

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from ertacache.errors import InvalidArgument
from ertacache.pipelines.models import unwrapped
from ertacache.pipelines.quantizers.fake import FakeQuantLinear
from ertacache.pipelines.quantizers.layers import linears_of
from ertacache.pipelines.quantizers.scheme import Scheme
from ertacache.pipelines.weights import FUSED
from ertacache.profile.fingerprint import storable

#: Where a denoiser's configuration says how it was quantised: private, so that it makes no other configuration.
_KEY = "_ertacache_quantizer"


def mark(denoiser: nn.Module, record: Mapping[str, Any]) -> None:
    """Write into a denoiser's configuration how it is quantised; a saved model has it too."""
    if hasattr(denoiser, "register_to_config"):
        _configure(denoiser, {**_config(denoiser), _KEY: dict(record)})
    else:
        setattr(denoiser, _KEY, dict(record))


def unmark(denoiser: nn.Module) -> None:
    """Undo `mark`; what else the configuration has got since stays."""
    vars(denoiser).pop(_KEY, None)
    if _KEY in (config := _config(denoiser)):
        _configure(denoiser, {name: value for name, value in config.items() if name != _KEY})


def _configure(denoiser: Any, items: dict[str, Any]) -> None:
    """A configuration of these items, with what was set as its attribute alone (the mark of an IP-Adapter), which
    `register_to_config` loses."""
    before = vars(denoiser.config)
    denoiser._internal_dict = type(denoiser.config)(items)
    vars(denoiser.config).update({name: value for name, value in before.items() if name != _KEY})


def quantizer_of(denoiser: nn.Module) -> dict[str, Any] | None:
    """How a denoiser is quantised, as JSON holds it; None where it is not.

    `{"by": "ertacache", "scheme", "group", "skip"}` for this package's, `{"by": "diffusers", "config"}` for what was
    quantised while loading, and `{"by": "weights", "kinds"}` with the classes and dtypes of packed weights otherwise
    (torchao's `quantize_`, GGUF, nunchaku, layers cast to float8), of which no more is known.

    Raises:
        InvalidArgument: a saved quantised model that was loaded without `load_pipeline`, or projections that were fused
            after quantising: their activations are exact.
    """
    inner = unwrapped(denoiser)
    record = marked(inner)
    if record is not None:
        if not is_live(inner, record):
            raise InvalidArgument(
                f"{type(inner).__name__} was saved as {record['scheme']} and loaded without it; load its folder with "
                "ertacache.pipelines.loading.load_pipeline"
            )
        if (name := _fused_since(inner, record)) is not None:
            raise InvalidArgument(
                f"layer {name} was fused of quantised ones and computes exactly; call unfuse_qkv_projections(), or "
                "fuse before quantising"
            )
        return {"by": "ertacache", **record}
    config = _config(inner).get("quantization_config")
    if config is not None:
        content: Any = config.to_dict() if hasattr(config, "to_dict") else config
        return {"by": "diffusers", "config": storable(content)}
    kinds = sorted({kind for weight in inner.parameters() if (kind := _packed(weight))})
    return {"by": "weights", "kinds": kinds} if kinds else None


def _fused_since(denoiser: nn.Module, record: Mapping[str, Any]) -> str | None:
    """A layer that `fuse_qkv_projections` has made of quantised ones, which stays a plain one."""
    if Scheme.parse(record["scheme"]).bits is None:
        return None
    return next((name for name in linears_of(denoiser, record["skip"]) if name.rpartition(".")[2] in FUSED), None)


def _packed(weight: nn.Parameter) -> str:
    """Class and dtype of a weight that does not hold one number in each element; empty for others."""
    kind = type(weight)
    own = kind is not nn.Parameter and not kind.__module__.startswith("torch.")
    return f"{kind.__name__} {weight.dtype}" if own or weight.dtype.itemsize == 1 else ""


def words_of(found: Mapping[str, Any]) -> str:
    """A scheme, a method or the kinds of weights, from what `quantizer_of` found."""
    return str(found.get("scheme") or found.get("kinds") or found["config"].get("quant_method", "by diffusers"))


def _config(denoiser: nn.Module) -> Mapping[str, Any]:
    config: Any = getattr(denoiser, "config", None)
    return cast("Mapping[str, Any]", config) if isinstance(config, Mapping) else {}


def marked(denoiser: nn.Module) -> dict[str, Any] | None:
    """What its configuration says.

    Raises:
        InvalidArgument: other keys or other kinds of values than `quantize` writes.
    """
    found = _config(denoiser).get(_KEY, vars(denoiser).get(_KEY))
    if found is None:
        return None
    record: dict[str, Any] = dict(found) if isinstance(found, Mapping) else {}
    skip: Any = record.get("skip")
    sound = (
        record.keys() == {"scheme", "group", "skip"}
        and isinstance(record["scheme"], str)
        and type(record["group"]) is int
        and record["group"] >= 1
        and isinstance(skip, list | tuple)
        and all(isinstance(pattern, str) for pattern in skip)
    )
    if not sound:
        raise InvalidArgument(
            f"{_KEY} in the configuration of {type(denoiser).__name__} is {found!r}; it must hold scheme, group and "
            "skip: quantise the model again"
        )
    return {**record, "skip": list(skip)}


def is_live(denoiser: nn.Module, record: Mapping[str, Any]) -> bool:
    """Whether the layers compute as the record says."""
    if Scheme.parse(record["scheme"]).bits is not None:
        return any(isinstance(module, FakeQuantLinear) for module in denoiser.modules())
    return any(_packed(weight) for weight in denoiser.parameters())
