"""How a pipeline is called: the arguments it takes, where its progress bars are, and what it returns.

A pipeline of Modular Diffusers has these from its blocks; any other one from its `__call__`.
"""

import inspect
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ertacache.errors import UnsupportedPipeline

#: What the blocks of a modular pipeline call their decoded result.
_DECODED = ("images", "videos")


def is_modular(pipe: Any) -> bool:
    """Whether a pipeline is one of Modular Diffusers, made of blocks."""
    return hasattr(pipe, "blocks") and hasattr(pipe, "default_call_parameters")


def defaults_of(pipe: Any) -> dict[str, Any]:
    """The arguments that a call takes, by name, with their defaults (`inspect.Parameter.empty` where there is none)."""
    if is_modular(pipe):
        return {name: value for name, value in pipe.default_call_parameters.items() if name is not None}
    return {name: known.default for name, known in inspect.signature(pipe.__call__).parameters.items()}


def default_size(pipe: Any, name: str) -> int:
    """Pixels of a side that a call makes where it does not say `height` or `width`; 0 where that is not known.

    Read in the order in which diffusers' pipelines look: their signature, the pipeline, the denoiser's configuration.
    """
    own = defaults_of(pipe).get(name)
    if type(own) is int and own:
        return own
    cells: Any = getattr(pipe, f"default_sample_{name}", 0) or getattr(pipe, "default_sample_size", 0)
    if not cells:
        denoiser = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
        config = dict(getattr(denoiser, "config", {}))
        cells = config.get(f"sample_{name}") or config.get("sample_size") or 0
    if isinstance(cells, list | tuple):
        cells = cells[0 if name == "height" else 1]
    scale = getattr(pipe, "vae_scale_factor", None) or getattr(pipe, "vae_scale_factor_spatial", 0)
    return int(cells * scale)


def progress_bars(pipe: Any) -> Iterator[Any]:
    """Whatever of a pipeline has a progress bar to configure: itself, or those of its blocks that loop."""
    if not is_modular(pipe):
        yield pipe
        return
    blocks = list(pipe._blocks.sub_blocks.values())  # `pipe.blocks` is a copy of them
    while blocks:
        block = blocks.pop()
        blocks.extend(block.sub_blocks.values())
        if hasattr(block, "set_progress_bar_config"):
            yield block


def call(pipe: Any, arguments: dict[str, Any], *, decode: bool) -> Tensor:
    """Images or frames of one call as the pipeline's tensor in [0, 1]; its final latents where `decode` is False,
    if it gives them.

    Raises:
        UnsupportedPipeline: it returns something else than one tensor, or it has no step that decodes.
    """
    result = _modular_call(pipe, arguments, decode) if is_modular(pipe) else _call(pipe, arguments, decode)
    if isinstance(result, np.ndarray) and result.ndim >= 4:  # whatever is asked for, of pipelines from early days
        result = torch.from_numpy(result).movedim(-1, -3)
    if not isinstance(result, Tensor):
        raise UnsupportedPipeline(f"{type(pipe).__name__} returned {type(result).__name__} for output_type='pt'")
    return result


def _call(pipe: Any, arguments: dict[str, Any], decode: bool) -> Any:
    result = pipe(**arguments, output_type="pt" if decode else "latent")[0]
    if not decode and isinstance(result, list):
        sections = cast("list[object]", result)
        if sections and all(isinstance(section, Tensor) and section.ndim == 5 for section in sections):
            return torch.cat(cast("list[Tensor]", sections), 2)  # FramePack gives its clip section by section
    return cast(object, result)


def _modular_call(pipe: Any, arguments: dict[str, Any], decode: bool) -> Any:
    # The latents are there whether or not they are decoded; not every block that decodes can be told not to.
    # `outputs` says what the blocks as published return, decoded or not.
    made = [output.name for output in pipe.blocks.intermediate_outputs]
    decoded = next((name for name in _DECODED if name in made), None)
    if decode and decoded is None:
        raise UnsupportedPipeline(
            f"{type(pipe).__name__} has no block that gives {' or '.join(_DECODED)}; calibrate the pipeline with its "
            "block that decodes"
        )
    form = {"output_type": "pt"} if "output_type" in defaults_of(pipe) else {}
    return pipe(**arguments, **form, output=decoded if decode else "latents")
