"""Whether a handover belongs to a pipeline, and what it says of where it comes from."""

import importlib.metadata
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ertacache.errors import SplitMismatch
from ertacache.pipelines.models import denoisers_of, unwrapped
from ertacache.pipelines.weights import fingerprint_of
from ertacache.profile.fingerprint import storable, text_hash
from ertacache.runtime.identity import settings_of
from ertacache.runtime.pair import same, space_of

if TYPE_CHECKING:
    from ertacache.split.handover import Handover

#: Which entry of a denoiser's configuration is the width of a text.
_WIDTHS = ("joint_attention_dim", "cross_attention_dim", "text_dim", "text_embed_dim", "caption_channels")
#: More pixels, or pixels of frames, than any autoencoder makes of one place of its latent.
_PIXELS = 2**14


def source_of(pipe: Any) -> dict[str, Any]:
    """What a handover says of where it comes from: classes, a name for the weights, releases."""
    prints = fingerprint_of(pipe)
    return {
        "pipeline": type(pipe).__name__,
        "model": ", ".join(type(unwrapped(one)).__name__ for one in denoisers_of(pipe)),
        "weights": text_hash([prints]) if prints else "",
        "versions": {name: importlib.metadata.version(name) for name in ("ertacache", "diffusers", "torch")},
    }


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
    same({**_only(known, there), **here}, there, "solver.", "this pipeline", remedy, both=True)
    remedy = "hand over to a model with the same latents and text encoders"
    same(space_of(pipe), handover.space, "space.", "this pipeline", remedy)
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


def _only(config: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    return storable({key: config[key] for key in keys if key in config})
