"""Whether two models share one space of latents and texts, and whether a handover belongs to a pipeline."""

import importlib.metadata
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ertacache.errors import SplitMismatch
from ertacache.pipelines.models import denoisers_of, unwrapped
from ertacache.pipelines.weights import fingerprint_of
from ertacache.profile.fingerprint import storable, text_hash
from ertacache.profile.sealed import short
from ertacache.runtime.identity import settings_of

if TYPE_CHECKING:
    from ertacache.split.handover import Handover

#: What the configurations of two denoisers must agree in, as far as both have it: latents and what comes with them.
_DENOISER = (
    "in_channels", "out_channels", "joint_attention_dim", "pooled_projection_dim", "cross_attention_dim", "text_dim",
    "text_embed_dim", "caption_channels", "addition_embed_type", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim", "class_embed_type", "encoder_hid_dim", "time_cond_proj_dim", "image_dim",
)  # fmt: skip
#: Those of two in one process, where the arguments that a pipeline makes for one denoiser go to the other as well.
_ARGUMENTS = (*_DENOISER, "guidance_embeds")
#: The same of two autoencoders.
_AUTOENCODER = ("latent_channels", "z_dim", "scaling_factor", "shift_factor", "latents_mean", "latents_std")
#: One that takes latents as the denoiser has them, and whose own factors say nothing.
_SCALED = "AutoencoderTiny"
#: Which entry of a denoiser's configuration is the width of a text.
_WIDTHS = ("joint_attention_dim", "cross_attention_dim", "text_dim", "text_embed_dim", "caption_channels")
#: More pixels, or pixels of frames, than any autoencoder makes of one place of its latent.
_PIXELS = 2**14


def space_of(pipe: Any) -> dict[str, Any]:
    """Of the first denoiser of a pipeline and of its autoencoder, what another model must agree in."""
    denoiser: Any = unwrapped(denoisers_of(pipe)[0])
    vae = getattr(pipe, "vae", None)
    found = {f"denoiser.{key}": value for key, value in _picked(denoiser, _DENOISER).items()}
    if vae is not None and type(vae).__name__ != _SCALED:
        found |= {f"vae.{key}": value for key, value in _picked(vae, _AUTOENCODER).items()}
    return storable(found)


def source_of(pipe: Any) -> dict[str, Any]:
    """What a handover says of where it comes from: classes, a name for the weights, releases."""
    prints = fingerprint_of(pipe)
    return {
        "pipeline": type(pipe).__name__,
        "model": ", ".join(type(unwrapped(one)).__name__ for one in denoisers_of(pipe)),
        "weights": text_hash([prints]) if prints else "",
        "versions": {name: importlib.metadata.version(name) for name in ("ertacache", "diffusers", "torch")},
    }


def check_pair(large: Any, small: Any, number: int) -> None:
    """Refuse a model that cannot go on where another one stopped.

    Args:
        large, small: pipelines, or of `small` the denoiser alone. number: which of the others `small` is.

    Raises:
        SplitMismatch: naming what differs.
    """
    whole = hasattr(small, "scheduler")
    first, other = unwrapped(denoisers_of(large)[0]), unwrapped(denoisers_of(small)[0] if whole else small)
    remedy = "the models of a split share latents and text encoders: use two of one family"
    _same(_picked(first, _ARGUMENTS), _picked(other, _ARGUMENTS), f"model {number}: denoiser.", "the large one", remedy)
    if whole:
        space = {key: value for key, value in space_of(large).items() if key.startswith("vae.")}
        _same(space, space_of(small), f"model {number}: ", "the large one", remedy)
        kinds = [_picked(pipe.scheduler, ("prediction_type",)) for pipe in (large, small)]
        _same(kinds[0], kinds[1], f"model {number}: scheduler.", "the large one", remedy)


def check_handover(handover: "Handover", pipe: Any) -> None:
    """Refuse a pipeline that cannot go on with a handover, before anything is run.

    Raises:
        SplitMismatch: another solver, latent space or width of texts, timesteps that the solver does not have, or a
            size that is not that of the latent.
    """
    state, scheduler = handover.solver, pipe.scheduler
    if type(scheduler).__name__ != state.scheduler:
        raise SplitMismatch(
            f"solver: the handover is of {state.scheduler}, this pipeline has {type(scheduler).__name__}; set "
            "pipe.scheduler to that class, with the configuration of the first side"
        )
    there, here = state.config, settings_of(scheduler)
    remedy = "set pipe.scheduler up with the configuration of the first side"
    known = dict(scheduler.config)
    _same({**_only(known, there), **here}, there, "solver.", "this pipeline", remedy, both=True)
    remedy = "hand over to a model with the same latents and text encoders"
    _same(space_of(pipe), handover.space, "space.", "this pipeline", remedy)
    times, last = handover.timesteps, int(known.get("num_train_timesteps", 1000))
    if not times.is_floating_point() and not 0 <= int(times.min()) <= int(times.max()) < last:
        raise SplitMismatch(
            f"timesteps: they reach from {int(times.min())} to {int(times.max())} and this solver was trained on 0 to "
            f"{last - 1}; ask the first side again"
        )
    _check_width(handover, unwrapped(denoisers_of(pipe)[0]))
    _check_size(handover)


def _check_width(handover: "Handover", denoiser: Any) -> None:
    config = dict(getattr(denoiser, "config", {}))
    width = next((config[name] for name in _WIDTHS if type(config.get(name)) is int), None)
    for name, value in handover.embeddings.items():
        if name.endswith("prompt_embeds") and "pooled" not in name and width not in (None, value.shape[-1]):
            raise SplitMismatch(
                f"{name}: texts are {value.shape[-1]} wide in the handover and {width} in {type(denoiser).__name__}; "
                "hand over to a model with the same text encoders"
            )


def _check_size(handover: "Handover") -> None:
    call, latent = handover.call, handover.latent
    size = math.prod(call.get(name, 1) for name in ("height", "width", "num_frames"))
    if size > (places := latent[0].numel()) * _PIXELS:
        raise SplitMismatch(
            f"height, width: {size} pixels, more than a latent of {places} numbers stands for; ask the first side again"
        )
    copies = math.prod(call.get(name, 1) for name in ("num_images_per_prompt", "num_videos_per_prompt"))
    texts = call.get("prompt")
    count = copies * (len(texts) if isinstance(texts, list) else 1)
    if texts is not None and count != len(latent):
        raise SplitMismatch(
            f"prompt: {count} samples of the call and {len(latent)} of the latent; ask the first side again"
        )


def _picked(part: Any, names: tuple[str, ...]) -> dict[str, Any]:
    config = dict(getattr(part, "config", {}))
    found = {name: config[name] for name in names if name in config}
    if "in_channels" in found and found.get("out_channels", 0) is None:
        found["out_channels"] = found["in_channels"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _only(config: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    return storable({key: config[key] for key in keys if key in config})


def _same(
    mine: Mapping[str, Any], other: Mapping[str, Any], field: str, side: str, remedy: str, *, both: bool = False
) -> None:
    """Refuse the first key that differs.

    Args:
        mine: of `side`. other: of the other one.
        both: whether a key that only one of them has differs too.
    """
    shared = sorted(mine.keys() | other.keys() if both else mine.keys() & other.keys())
    for key in shared:
        if mine.get(key) != other.get(key):
            raise SplitMismatch(
                f"{field}{short(key)[1:-1]}: {side} has {short(mine.get(key))}, the other one {short(other.get(key))}; "
                f"{remedy}"
            )
