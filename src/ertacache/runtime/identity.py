"""Whether a pipeline is the one of a profile: classes, the configuration as far as it is set, quantiser and weights."""

import importlib.metadata
import inspect
import warnings
from collections.abc import Mapping, Sequence
from reprlib import repr as short  # values from a file may be long
from typing import Any

from ertacache.errors import ProfileMismatch
from ertacache.pipelines.models import denoisers_of, unwrapped
from ertacache.pipelines.quantizers.record import quantizer_of
from ertacache.pipelines.weights import fingerprint_of
from ertacache.profile.fingerprint import config_hash, storable
from ertacache.profile.profile import Profile
from ertacache.profile.provenance import Provenance
from ertacache.profile.weights import Fingerprint

#: What loaders leave in a configuration that makes no other model: how the weights are stored and computed with, and
#: the mark that an IP-Adapter sets, which is to the model what a LoRA is (see `warn_of_weights`).
_LOADED = {"quantization_config", "dtype", "torch_dtype", "encoder_hid_dim_type"}
#: Keys that a message names before it counts.
_NAMED = 5


class _NotSet:
    def __repr__(self) -> str:
        return "not set"


_NOT_SET = _NotSet()


def identity_of(pipe: Any) -> dict[str, Any]:
    """What a provenance keeps of a pipeline's denoiser, or of both, and of its scheduler: classes and configurations.

    Of a configuration that is what differs from the defaults of its class. Keys that the class does not take are left
    out, since nothing reads them, and so are private ones and what loaders put in.
    """
    scheduler = pipe.scheduler
    return {
        **model_of(denoisers_of(pipe)),
        "scheduler_class": type(scheduler).__name__,
        "scheduler_config": settings_of(scheduler),
    }


def model_of(denoisers: Sequence[Any]) -> dict[str, Any]:
    """The same of denoisers alone."""
    inner = [unwrapped(denoiser) for denoiser in denoisers]
    settings = [settings_of(denoiser) for denoiser in inner]
    configs = settings[0] if len(settings) == 1 else {"denoisers": settings}
    return {"model_class": _names(inner), "model_config": configs}


def check_denoisers(
    field: str, kept: Mapping[str, Any], denoisers: Sequence[Any], facts: Provenance, remedy: str
) -> None:
    """Class and configuration of denoisers against what `model_of` gave of them in a calibration.

    Raises:
        ProfileMismatch: at the first that differs.
    """
    inner = [unwrapped(denoiser) for denoiser in denoisers]
    _check_class(f"{field} class", kept["model_class"], _names(inner), facts, remedy)
    configs = [kept["model_config"]] if len(inner) == 1 else kept["model_config"].get("denoisers", [])
    _check_settings(f"{field} config", configs, inner, facts, remedy)


def check_pipeline(profile: Profile, pipe: Any) -> None:
    """Model and scheduler, class and configuration; how the model is quantised, where the profile undoes that.

    Raises:
        ProfileMismatch: at the first that differs.
    """
    facts, denoisers, scheduler = profile.provenance, _denoisers(pipe), pipe.scheduler
    _check_class("model class", facts.model_class, _names(denoisers), facts, "load the model it was calibrated on")
    if facts.model_config_hash:
        configs = [_config(denoiser) for denoiser in denoisers]
        found = config_hash(configs[0] if len(configs) == 1 else {"denoisers": configs})
        _check_hash("model config", facts.model_config_hash, found, facts, "calibrate on this model")
    else:
        kept = facts.model_config.get("denoisers", [facts.model_config])
        _check_settings("model config", kept, denoisers, facts, "calibrate on this model")
    _check_class(
        "scheduler class", facts.scheduler_class, type(scheduler).__name__, facts, "set pipe.scheduler to that class"
    )
    remedy = "set pipe.scheduler up as in the calibration, or calibrate with this scheduler"
    if facts.scheduler_config_hash:
        found = config_hash(_config(scheduler))
        _check_hash("scheduler config", facts.scheduler_config_hash, found, facts, remedy)
    else:
        _check_settings("scheduler config", [facts.scheduler_config], [scheduler], facts, remedy)
    _check_quantizers(facts, pipe)


def quantizers_of(pipe: Any) -> list[dict[str, Any] | None]:
    """How each of a pipeline's denoisers is quantised, see `quantizer_of`; None for one that is not."""
    return [quantizer_of(denoiser) for denoiser in _denoisers(pipe)]


def _check_quantizers(facts: Provenance, pipe: Any) -> None:
    """A profile that undoes what one quantiser does is for that one."""
    if not facts.quantizer:
        return
    kept, found = facts.quantizer["denoisers"], quantizers_of(pipe)
    for n, (then, now) in enumerate(zip(kept, found, strict=True)):
        if then != now:
            where = f"denoisers[{n}] " * (len(kept) > 1)
            raise ProfileMismatch(
                f"quantizer: {where}{_apart(then, now)}; the profile undoes the errors of that quantiser: quantise the "
                "model in that way, or calibrate on this one"
            )


def _apart(then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """What differs, in words."""
    if then is None or now is None:
        words = ["not quantised" if one is None else short(dict(one)) for one in (then, now)]
        return f"is {words[0]} in the profile and {words[1]} here"
    found = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    pairs = (f"{key} {short(then.get(key))} in the profile and {short(now.get(key))} here" for key in found[:_NAMED])
    return f"has {', '.join(pairs)}"


def warn_of_weights(profile: Profile, pipe: Any) -> None:
    """Compare a few entries of each of the denoiser's weights with those of the calibration.

    Warns:
        UserWarning: they are others. Nothing is said of what is quantised, sharded or on a disk, nor by older files.
    """
    kept = profile.provenance.weights
    found = fingerprint_of(pipe) if kept else ""
    if not found:
        return
    difference = Fingerprint.parse(kept, "provenance.weights").difference(Fingerprint.parse(found, "weights"))
    if difference:
        warnings.warn(
            f"these are other weights of {_names(_denoisers(pipe))} than the profile was calibrated on: {difference} "
            "(a fine-tune, a LoRA, an IP-Adapter); the measured loss may not hold: calibrate on this model",
            stacklevel=2,
        )


def _denoisers(pipe: Any) -> list[Any]:
    return [unwrapped(denoiser) for denoiser in denoisers_of(pipe)]


def _names(denoisers: Sequence[Any]) -> str:
    return ", ".join(type(denoiser).__name__ for denoiser in denoisers)


def _config(part: Any) -> dict[str, Any]:
    return dict(getattr(part, "config", {}))


def _defaults(part: Any) -> tuple[dict[str, Any], bool]:
    """The arguments of a class with their defaults, `_NOT_SET` for none, and whether it takes others as well."""
    defaults: dict[str, Any] = {}
    if not hasattr(part, "register_to_config"):  # not of diffusers: its configuration may be anything
        return defaults, True
    for owner in type(part).__mro__:
        if "__init__" not in vars(owner):
            continue
        arguments = inspect.signature(owner.__init__).parameters.values()
        for one in arguments:
            defaults.setdefault(one.name, _NOT_SET if one.default is one.empty else one.default)
        if all(one.kind is not one.VAR_KEYWORD for one in arguments):  # else they go on to the class above
            return defaults, False
    return defaults, True


def _values(part: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration as far as the class reads it, and the class's defaults, both as a profile stores them."""
    defaults, takes_more = _defaults(part)
    config = {
        key: value
        for key, value in _config(part).items()
        # diffusers takes the name of `**others` for an argument without a default, and writes that down.
        if (key in defaults or takes_more) and value is not inspect.Parameter.empty
    }
    known = {key: value for key, value in defaults.items() if value is not _NOT_SET}
    return _kept(config), _kept(known)


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in storable(config).items() if key not in _LOADED}


def settings_of(part: Any) -> dict[str, Any]:
    """What differs from the defaults. A key without one that is None counts as not there, as in an older release."""
    values, defaults = _values(part)
    return {key: value for key, value in values.items() if value != defaults.get(key)}


def _check_class(field: str, kept: str, found: str, facts: Provenance, remedy: str) -> None:
    if kept != found:
        raise ProfileMismatch(
            f"{field}: the profile has {kept!r}, this pipeline {found!r} {_versions(facts)}; {remedy}"
        )


def _check_hash(field: str, kept: str, found: str, facts: Provenance, remedy: str) -> None:
    if kept != found:
        raise ProfileMismatch(
            f"{field}: the profile has the hash {kept!r}, this pipeline {found!r} {_versions(facts)}; the file is "
            "of an older version, which kept only a hash, and a key that a newer diffusers adds changes it: "
            f"{remedy}"
        )


def _check_settings(
    field: str, kept: Sequence[Mapping[str, Any]], parts: Sequence[Any], facts: Provenance, remedy: str
) -> None:
    found = [
        (f"denoisers[{n}]." if len(parts) > 1 else "") + one
        for n, (settings, part) in enumerate(zip(kept, parts, strict=True))
        for one in _differences(settings, part)
    ]
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise ProfileMismatch(f"{field}: {', '.join(found[:_NAMED])}{more} {_versions(facts)}; {remedy}")


def _differences(kept: Mapping[str, Any], part: Any) -> list[str]:
    """Each key that one of the two has set otherwise, in words. What neither has set is the class's default in both."""
    values, defaults = _values(part)
    then, now = {**defaults, **kept}, {**defaults, **values}
    return [
        f"{short(key)[1:-1]} is {short(then.get(key, _NOT_SET))} in the profile and "
        f"{short(now.get(key, _NOT_SET))} here"
        for key in sorted(kept.keys() | settings_of(part).keys())
        if then.get(key) != now.get(key)
    ]


def _versions(facts: Provenance) -> str:
    then, now = facts.versions.get("diffusers", "unknown"), importlib.metadata.version("diffusers")
    return f"(the profile is of diffusers {short(then)[1:-1]}, this is {now})"
