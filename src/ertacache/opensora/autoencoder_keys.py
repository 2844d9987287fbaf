"""The names of the autoencoder's published weights, whichever diffusers wrote them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache.opensora.autoencoder import AutoencoderKLOpenSora
from ertacache.opensora.tensor_names import wrong_names

#: The attention of `AutoencoderKL`, before diffusers 0.15 and since.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def published_keys(state_dict: Mapping[str, Tensor], model: AutoencoderKLOpenSora | None = None) -> dict[str, Tensor]:
    """The tensors of a published autoencoder under the names that `AutoencoderKLOpenSora` has for them.

    Args:
        state_dict: of the checkpoint; it stays as it is.
        model: that they are for; of the published sizes without one.

    Raises:
        InvalidArgument: tensors that are missing, that the model does not know, or that come under both an old and a
            new name; all kinds are named.
    """
    if model is None:
        with torch.device("meta"):
            model = AutoencoderKLOpenSora()
    expected = model.state_dict().keys()
    renamed: dict[str, Tensor] = {}
    twice: list[str] = []
    for name, tensor in state_dict.items():
        new = _current(name)
        if new in renamed:
            twice.append(new)
        renamed[new] = tensor
    found = wrong_names(missing=expected - renamed.keys(), unknown=renamed.keys() - expected, twice=twice)
    if found:
        raise InvalidArgument(
            f"the tensors are not those of this Open-Sora autoencoder ({found}); give the whole checkpoint "
            "of OpenSora-VAE-v1.2, or the model whose weights they are"
        )
    return renamed


def _current(name: str) -> str:
    head, dot, last = name.rpartition(".")
    before, _, layer = head.rpartition(".")
    if ".attentions." in name and layer in _RENAMED:
        return f"{before}.{_RENAMED[layer]}{dot}{last}"
    return name
