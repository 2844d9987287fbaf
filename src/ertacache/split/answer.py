"""Whether a handover that came over a network is the one that was asked for; nothing in it is taken on trust."""

import math
from dataclasses import replace
from typing import Any

import torch

from ertacache.errors import AnswerInvalid, ErtacacheError
from ertacache.profile.sealed import short
from ertacache.split import arguments
from ertacache.split.encoded import ENCODED
from ertacache.split.handover import Handover
from ertacache.split.matching import check_handover
from ertacache.split.request import SplitRequest

_SIZES = ("height", "width", "num_frames")
#: Tokens of CLIP, whose length no argument says.
_CLIP = 77


def accepted(
    data: bytes, request: SplitRequest, pipe: Any, *, server: str, cap: int, dtype: torch.dtype | None
) -> Handover:
    """The handover in an answer, with the call that was asked for in place of the one that it names.

    Args:
        pipe: that goes on. server: for errors.
        dtype: to go on in; None as it came, or as the pipeline is where it was compressed.

    Raises:
        AnswerInvalid: bytes that are no handover, or that of another run.
    """
    try:
        found = Handover.from_bytes(data, "answer", cap=cap)
        _check_run(found, request, server)
        _check_texts(found, request, pipe, server)
        wanted = dtype or (pipe.dtype if request.compressed else found.dtype)
        made = found if wanted == found.dtype else found.to(wanted)
        # The size, above all, is ours: it says how much memory the rest of the run takes.
        own = arguments.sent(pipe, request.call, texts=request.texts == "prompt")
        if (sigmas := request.tensors.get("sigmas")) is not None and found.steps <= len(sigmas):
            own["num_inference_steps"] = found.steps
        made = replace(made, call=own, embeddings=request.embeddings or made.embeddings)
        check_handover(made, pipe)
    except AnswerInvalid:
        raise
    except ErtacacheError as error:
        raise AnswerInvalid(f"{server} handed over what cannot be used: {error}") from error
    for name, value in own.items():
        if name not in _SIZES and found.call.get(name) != value:
            _refuse(server, name, found.call.get(name), value)
    return made


def _check_run(found: Handover, request: SplitRequest, server: str) -> None:
    if found.step != request.until:
        _refuse(server, "step", found.step, request.until)
    if len(found.latent) != request.samples:
        _refuse(server, "samples", len(found.latent), request.samples)
    if request.compressed and found.dtype != torch.bfloat16:
        _refuse(server, "dtype", found.dtype, torch.bfloat16)
    generators = (len(found.generators), found.listed)
    if generators != (len(request.generators), request.listed):
        _refuse(server, "generators", generators, (len(request.generators), request.listed))


def _check_texts(found: Handover, request: SplitRequest, pipe: Any, server: str) -> None:
    """One embedding of each kind that this pipeline's encoder makes, of no more tokens than it may make."""
    names = ENCODED.get(type(pipe).__name__, ())
    wanted = set(names) if request.texts == "embeddings" else set[str]()
    known = wanted | {f"negative_{name}" for name in wanted}
    needed = {name for name in wanted if not name.startswith("negative_")}
    if not needed <= found.embeddings.keys() <= known:
        _refuse(server, "embeddings", sorted(found.embeddings), sorted(needed))
    tokenizer = int(getattr(getattr(pipe, "tokenizer", None), "model_max_length", _CLIP))
    longest = request.call.get("max_sequence_length", 0) + (tokenizer if tokenizer < 2**12 else _CLIP)
    for name, value in found.embeddings.items():
        tokens = math.prod(value.shape[1:-1])
        if tokens > longest:
            _refuse(server, f"tokens of {name}", tokens, f"at most {longest}")


def _refuse(server: str, field: str, found: object, asked: object) -> None:
    raise AnswerInvalid(
        f"{server} handed over another run: {field} is {short(found)} where {short(asked)} was asked for; check that "
        "both sides have the same kind of pipeline, or ask another server"
    )
