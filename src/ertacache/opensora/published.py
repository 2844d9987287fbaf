"""The parts of Open-Sora 1.2 from the repositories that they are published in, which are no diffusers pipeline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, T5EncoderModel

from ertacache.errors import ErtacacheError, InvalidArgument
from ertacache.extras import require
from ertacache.files import json_object
from ertacache.opensora.autoencoder import AutoencoderKLOpenSora
from ertacache.opensora.autoencoder_keys import published_keys
from ertacache.opensora.tensor_names import listed, wrong_names
from ertacache.opensora.transformer import STDiT3Transformer3DModel

#: Files that hold all weights of a repository, or say which files do, the first that is there.
_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "diffusion_pytorch_model.safetensors", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
#: A constant of the architecture, which a file need not have.
_OPTIONAL = frozenset({"rope.freqs"})


def published_parts(
    transformer: str, vae: str, text_encoder: str, dtype: torch.dtype, text_encoder_dtype: torch.dtype
) -> dict[str, Any]:
    """Tokenizer, text encoder, autoencoder and transformer, by the names of the pipeline's components.

    Args:
        transformer, vae, text_encoder: Hub ids or folders.
        dtype: of transformer and autoencoder.
        text_encoder_dtype: of the text encoder.

    Raises:
        InvalidArgument: a file that is not there or cannot be read, or weights that are missing, unknown or of another
            shape.
        MissingExtra: nothing there that reads the tokenizer.
    """
    if _file(text_encoder, "tokenizer.json") is None:
        require(f"the tokenizer of {text_encoder!r}", "sentencepiece", "google.protobuf")
    parts: dict[str, Any] = {"transformer": published_transformer(transformer, dtype)}
    parts["vae"] = published_autoencoder(vae, dtype)
    try:
        parts["tokenizer"] = AutoTokenizer.from_pretrained(text_encoder)
        parts["text_encoder"] = T5EncoderModel.from_pretrained(text_encoder, dtype=text_encoder_dtype).eval()
    except Exception as error:  # foreign files, in two libraries
        raise _unreadable(text_encoder, "T5 encoder with its tokenizer", error) from error
    return parts


def published_transformer(source: str, dtype: torch.dtype = torch.float32) -> STDiT3Transformer3DModel:
    """The transformer of a Hub id or a folder. Raises as `published_parts`."""
    with torch.device("meta"):
        model: Any = STDiT3Transformer3DModel.from_config(_config(source))
    tensors = _tensors(source)
    known = model.state_dict().keys()
    found = wrong_names(missing=known - tensors.keys() - _OPTIONAL, unknown=tensors.keys() - known)
    if found:
        raise InvalidArgument(
            f"the tensors of {source!r} are not those of this Open-Sora transformer ({found}); give the "
            "whole checkpoint of OpenSora-STDiT-v3, with its config.json"
        )
    return _filled(model, tensors, source, dtype)


def published_autoencoder(source: str, dtype: torch.dtype = torch.float32) -> AutoencoderKLOpenSora:
    """The autoencoder of a Hub id or a folder. Raises as `published_parts`.

    Of its configuration only what the class knows is read: the published one speaks of training and of where its
    halves once came from. The weights have to fit one and all.
    """
    config = _config(source)
    own = AutoencoderKLOpenSora._get_init_keys(AutoencoderKLOpenSora)  # pyright: ignore[reportPrivateUsage]
    with torch.device("meta"):
        model: Any = AutoencoderKLOpenSora.from_config({name: config[name] for name in config if name in own})
    return _filled(model, published_keys(_tensors(source), model), source, dtype)


def _filled(model: Any, tensors: Mapping[str, Tensor], source: str, dtype: torch.dtype) -> Any:
    """The model, which has no memory yet, with these weights."""
    state = model.state_dict()
    shapes = {name: (list(tensor.shape), list(state[name].shape)) for name, tensor in tensors.items()}
    if other := [f"{name} {found}, not {own}" for name, (found, own) in shapes.items() if found != own]:
        raise InvalidArgument(
            f"the tensors of {source!r} have other shapes than its config.json says ({listed(other)}); give those "
            "that belong together"
        )
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    return model.eval()


def _config(source: str) -> dict[str, Any]:
    path = _file(source, "config.json")
    if path is None:
        raise InvalidArgument(f"{source!r} has no config.json; give a published Hub id, or a folder with its files")
    try:
        return json_object(path.read_bytes())
    except ValueError as error:
        raise _unreadable(source, "config.json", error) from error


def _tensors(source: str) -> dict[str, Tensor]:
    path = next((path for name in _WEIGHTS if (path := _file(source, name)) is not None), None)
    if path is None:
        raise InvalidArgument(f"{source!r} has no weights; give a Hub id or folder with one of {', '.join(_WEIGHTS)}")
    try:
        if path.suffix != ".json":
            return _read(path)
        names = sorted(set(json_object(path.read_bytes())["weight_map"].values()))
        files = {name: _file(source, name) for name in names}
        if missing := [name for name, file in files.items() if file is None]:
            raise InvalidArgument(f"{source!r} lacks {listed(missing)} of its weights; fetch it again")
        return {name: tensor for file in files.values() if file is not None for name, tensor in _read(file).items()}
    except ErtacacheError:
        raise
    except Exception as error:  # foreign bytes: each format has its own
        raise _unreadable(source, path.name, error) from error


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _file(source: str, name: str) -> Path | None:
    """A file of a folder or of a repository, which is fetched; None where there is no such file."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, name))
    except LocalEntryNotFoundError as error:  # no network, and it is not in the cache
        raise _unreadable(source, name, error) from error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:  # no such repository, no form of an id
        raise _unreadable(source, name, error) from error


def _unreadable(source: str, what: str, error: Exception) -> InvalidArgument:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return InvalidArgument(
        f"cannot read the {what} of {source!r} ({first}); give a published Hub id that this machine can reach, or a "
        "folder with its files"
    )
