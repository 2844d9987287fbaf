"""Whether two models share one space of latents and texts."""

from collections.abc import Mapping
from typing import Any

from ertacache.errors import SplitMismatch
from ertacache.pipelines.models import denoisers_of, unwrapped
from ertacache.profile.fingerprint import storable
from ertacache.profile.sealed import short

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


def space_of(pipe: Any) -> dict[str, Any]:
    """Of the first denoiser of a pipeline and of its autoencoder, what another model must agree in."""
    denoiser: Any = unwrapped(denoisers_of(pipe)[0])
    vae = getattr(pipe, "vae", None)
    found = {f"denoiser.{key}": value for key, value in _picked(denoiser, _DENOISER).items()}
    if vae is not None and type(vae).__name__ != _SCALED:
        found |= {f"vae.{key}": value for key, value in _picked(vae, _AUTOENCODER).items()}
    return storable(found)


def check_pair(large: Any, small: Any, name: str) -> None:
    """Refuse a model that cannot go on where another one stopped.

    Args:
        large, small: pipelines, or of `small` the denoiser alone. name: what errors call `small`.

    Raises:
        SplitMismatch: naming what differs.
    """
    whole = hasattr(small, "scheduler")
    first, other = unwrapped(denoisers_of(large)[0]), unwrapped(denoisers_of(small)[0] if whole else small)
    remedy = "models of one run share latents and text encoders: use two of one family"
    same(_picked(first, _ARGUMENTS), _picked(other, _ARGUMENTS), f"{name}: denoiser.", "the large one", remedy)
    if whole:
        space = {key: value for key, value in space_of(large).items() if key.startswith("vae.")}
        same(space, space_of(small), f"{name}: ", "the large one", remedy)
        kinds = [_picked(pipe.scheduler, ("prediction_type",)) for pipe in (large, small)]
        same(kinds[0], kinds[1], f"{name}: scheduler.", "the large one", remedy)


def _picked(part: Any, names: tuple[str, ...]) -> dict[str, Any]:
    config = dict(getattr(part, "config", {}))
    found = {name: config[name] for name in names if name in config}
    if "in_channels" in found and found.get("out_channels", 0) is None:
        found["out_channels"] = found["in_channels"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def same(
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
