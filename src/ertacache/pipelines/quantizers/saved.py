"""A quantised pipeline as a folder of diffusers, which `load_pipeline` quantises again."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ertacache.errors import InvalidArgument
from ertacache.files import check_output
from ertacache.pipelines import bundled
from ertacache.pipelines.quantizers.layers import DEFAULT_SKIP, linears_of
from ertacache.pipelines.quantizers.quantize import planned, quantize
from ertacache.pipelines.quantizers.record import mark
from ertacache.pipelines.quantizers.scheme import GROUP, Scheme


def check_new(folder: Path) -> Path:
    """Refuse a folder that holds something already, or cannot be written.

    Raises:
        InvalidArgument: with the remedy.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise InvalidArgument(f"the folder {folder} is not empty; name a new one, or delete it")
    return check_output(folder, "folder")


def save_quantized(
    pipe: Any, scheme: Scheme, folder: Path, *, model: str = "", skip: Sequence[str] = DEFAULT_SKIP, group: int = GROUP
) -> int:
    """Write a pipeline as a quantised model; `pipe` is not to be used afterwards.

    Rounded weights are stored as numbers of the pipeline's dtype. Those of several grids and of torchao's schemes are
    stored as they were, and quantised at every load: they do not fit diffusers' files. In both cases the configuration
    of each denoiser says the scheme, so that activations are rounded again on load.

    Args:
        model: what the pipeline was loaded by; the call arguments that its folder documents go along.

    Returns:
        The number of quantised layers.

    Raises:
        InvalidArgument, UnsupportedPipeline, MissingExtra: as `quantize`, and as `check_new`.
    """
    check_new(folder)
    scheme.check_here()
    denoisers, record = planned(pipe, scheme, skip, group)
    layers = sum(len(linears_of(denoiser, record["skip"])) for denoiser in denoisers)
    if scheme.stored:
        quantize(pipe, scheme, skip=record["skip"], group=group)
    else:
        for denoiser in denoisers:
            mark(denoiser, record)
    pipe.save_pretrained(folder)
    documented = (bundled.folder(model) if model in bundled.NAMES else Path(model)) / "call.json"
    if model and documented.is_file():
        shutil.copy(documented, folder / "call.json")
    return layers
