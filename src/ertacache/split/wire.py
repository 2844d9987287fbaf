"""The bytes of a handover: which tensors, in which dtypes and shapes, and which JSON. Nothing is ever unpickled."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ertacache.errors import HandoverInvalid, InvalidArgument
from ertacache.profile.fingerprint import config_hash
from ertacache.profile.sealed import Sealed, is_list, is_object, short
from ertacache.split.solver_state import MEMORIES, expected, memory_of

VERSION = 1
#: Bytes: latent and history of a clip, and the embeddings of two prompts.
SIZE_CAP = 256 * 2**20
HEADER_CAP = 2**20
_RANK = 6

_FLOATS = ("F32", "F16", "BF16")
#: What the tensors that every handover may have are made of; those of the solver's state are named by its row.
_DTYPES = {
    "latent": _FLOATS,
    "sigmas": ("F32", "F64"),
    "timesteps": ("I64", "F32", "F64"),
}
EMBEDDED = re.compile(r"text\.((negative_)?(pooled_)?prompt_embeds|(negative_)?prompt_(attention|embeds)_mask)")
_GENERATOR = re.compile(r"generator\.([0-9]|[1-9][0-9]{1,2})")
#: State of a generator of the CPU: Mersenne Twister, in torch's layout.
GENERATOR_BYTES = 5056

#: What the document says, and what kind of value that is.
_DOCUMENT: dict[str, type] = {
    "step": int, "calls": int, "listed": bool, "protocol": str, "solver": dict, "call": dict, "source": dict,
    "space": dict,
}  # fmt: skip
_SOLVER: dict[str, type] = {"scheduler": str, "config": dict, "counts": dict}
_SOURCE: dict[str, type] = {"pipeline": str, "model": str, "weights": str, "versions": dict}
_TEXT, _DEEPEST, _ENTRIES = 256, 8, 4096


def form(cap: int = SIZE_CAP) -> Sealed:
    """How a handover is packed and read.

    Args:
        cap: the most bytes.
    """
    return Sealed(
        kind="handover", key="ertacache-handover", version=VERSION, error=HandoverInvalid, size_cap=cap,
        header_cap=HEADER_CAP, rewrite="ask the other side for the first part again",
        shorter="use shorter prompts, or send embeddings", smaller="send a smaller batch, or `handover.to(bfloat16)`",
    )  # fmt: skip


def protocol(scheduler: str) -> str:
    """A name for what both sides must understand alike: the format, and what is sent of a solver."""
    row = next(row for row in MEMORIES if row.scheduler == scheduler)
    names = [name for name, *_ in (*row.counts, *row.tensors)] + [one.name for one in row.lists]
    return config_hash({"version": VERSION, "scheduler": scheduler, "names": names, "sigmas": row.sigmas})


def check_generators(states: Sequence[Tensor]) -> None:
    """Refuse bytes [5056] that are no state of a CPU generator: `InvalidArgument`."""
    for n, state in enumerate(states):
        try:
            torch.Generator("cpu").set_state(state)
        except RuntimeError as error:
            raise InvalidArgument(f"generator.{n} is no state of a CPU generator ({error})") from error


def unpacked(data: bytes, where: str, cap: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Document and tensors, each of them one that a handover may have and of a size that fits the others.

    Raises:
        HandoverInvalid: whatever is wrong; nothing was allocated then, unless it is NaN or infinity.
    """
    sealed = form(cap)
    _, document, entries = sealed.read(data, where)
    _check_document(sealed, document, where)
    _check_entries(sealed, document, entries, where)
    return document, sealed.load(data, where)


def _check_document(sealed: Sealed, document: Mapping[str, Any], where: str) -> None:
    parts = (("document", _DOCUMENT, document), ("solver", _SOLVER, None), ("source", _SOURCE, None))
    for field, kinds, found in parts:
        value = document[field] if found is None else found
        sealed.require_keys(value, set(kinds), where, field, VERSION)
        for key, kind in kinds.items():
            if type(value[key]) is not kind:
                raise sealed.invalid(where, key, f"is {short(value[key])}, not {KINDS[kind]}")
            if kind is str and len(value[key]) > _TEXT:
                raise sealed.invalid(where, key, f"has {len(value[key])} characters, over the cap of {_TEXT}")
    for field in ("config", "counts"):
        check_plain(sealed, document["solver"][field], where, f"solver.{field}")
    for value, field in ((document["space"], "space"), (document["source"]["versions"], "source.versions")):
        check_plain(sealed, value, where, field)


#: Kinds of values in words.
KINDS = {int: "a whole number", bool: "true or false", str: "a text", dict: "an object"}


def check_plain(sealed: Sealed, value: Any, where: str, field: str, depth: int = 0) -> None:
    """Refuse what no configuration holds: deep, long or vast values."""
    items = list(value.values()) if is_object(value) else value if is_list(value) else []
    if depth > _DEEPEST or len(items) > _ENTRIES or (isinstance(value, str) and len(value) > 16 * _TEXT):
        raise sealed.invalid(where, field, f"is {short(value)}, deeper or longer than any configuration")
    if type(value) is int and abs(value) >= 2**63:
        raise sealed.invalid(where, field, f"holds {short(value)}, more than 64 bits")
    for item in items:
        check_plain(sealed, item, where, field, depth + 1)


def _check_entries(sealed: Sealed, document: Mapping[str, Any], entries: Mapping[str, Any], where: str) -> None:
    """The tensors are exactly those of the solver's row after that step, and embeddings and generators."""
    name, step = document["solver"]["scheduler"], document["step"]
    row = memory_of(name)
    if row is None:
        known = ", ".join(row.scheduler for row in MEMORIES)
        raise sealed.invalid(where, "solver.scheduler", f"is {short(name)} where one of {known} belongs")
    if document["protocol"] != protocol(name):
        problem = f"is {short(document['protocol'])} where this release speaks {protocol(name)!r}"
        raise sealed.invalid(where, "protocol", problem, "install the same release of ertacache on both sides")
    order = row.order_of(document["solver"]["config"]) if _is_order(document["solver"]["config"]) else 0
    if not 1 <= order <= 4:
        raise sealed.invalid(where, "solver.config", "has a solver_order that is not 1, 2, 3 or 4")
    if not 1 <= step <= _ENTRIES:
        raise sealed.invalid(where, "step", f"is {short(step)} where a number from 1 to {_ENTRIES} belongs")
    states = {f"state.{name}": times for name, times in expected(row, step, order).items()}
    needed = {"latent", "timesteps", *(("sigmas",) if row.sigmas else ()), *states}
    for missing in sorted(needed - entries.keys()):
        raise sealed.invalid(where, "tensors", f"{missing!r} is missing after step {step} of {name}")
    for tensor, entry in entries.items():
        if tensor not in needed and not (EMBEDDED.fullmatch(tensor) or _GENERATOR.fullmatch(tensor)):
            raise sealed.invalid(where, "tensors", f"{short(tensor)} is unknown after step {step} of {name}")
        sealed.check_entry(tensor, entry, where, VERSION, dtypes=_dtypes(tensor, states), rank=_RANK, least=1)
    _check_shapes(sealed, {name: entry["shape"] for name, entry in entries.items()}, states, where)


def _is_order(config: Mapping[str, Any]) -> bool:
    return type(config.get("solver_order", 1)) is int


def _dtypes(name: str, states: Mapping[str, bool]) -> tuple[str, ...]:
    if name in states:
        return _DTYPES["timesteps"] if states[name] else _FLOATS
    if _GENERATOR.fullmatch(name):
        return ("U8",)
    return _DTYPES.get(name) or ((*_FLOATS, "I64", "BOOL") if "mask" in name else _FLOATS)


def _check_shapes(sealed: Sealed, shapes: Mapping[str, list[int]], states: Mapping[str, bool], where: str) -> None:
    latent, steps = shapes["latent"], shapes["timesteps"]
    batch = latent[0] if 2 <= len(latent) else 0

    def refuse(name: str, fits: str) -> None:
        raise sealed.invalid(where, f"tensor {short(name)}", f"has shape {short(shapes[name])} where {fits} belongs")

    if not batch:
        refuse("latent", "a latent [batch, ...]")
    if len(steps) != 1 or steps[0] > _ENTRIES:
        refuse("timesteps", f"a list of at most {_ENTRIES}")
    for name, shape in shapes.items():
        if name in states and shape != ([] if states[name] else latent):
            refuse(name, f"{[] if states[name] else latent}")
        if name == "sigmas" and shape != [steps[0] + 1]:
            refuse(name, f"[{steps[0] + 1}], one more than timesteps,")
        if name.startswith("text.") and (shape[:1] != [batch] or not 2 <= len(shape) <= 4):
            refuse(name, f"[{batch}, ...], the batch of the latent,")
        if name.startswith("generator.") and shape != [GENERATOR_BYTES]:
            refuse(name, f"[{GENERATOR_BYTES}]")
    count = sum(name.startswith("generator.") for name in shapes)
    names = {f"generator.{n}" for n in range(count)}
    if count > batch or not names <= shapes.keys():
        raise sealed.invalid(where, "tensors", f"holds {count} generators that are not numbered 0 to {batch - 1}")
