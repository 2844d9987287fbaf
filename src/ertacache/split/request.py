"""What one asks another machine for: the first part of a run, as one checked safetensors blob."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache.pipelines.inputs import is_text
from ertacache.pipelines.pipeline_call import default_size, defaults_of
from ertacache.profile.checks import MAX_STEPS
from ertacache.profile.sealed import Sealed, short
from ertacache.split import arguments, wire
from ertacache.split.parts import Texts

_DOCUMENT: dict[str, type] = {"call": dict, "until": int, "texts": str, "compressed": bool, "listed": bool}
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, eq=False)
class SplitRequest:
    """A pipeline call of which another machine makes the first steps.

    Attributes:
        call: arguments that cross a split, the defaults of the device's pipeline included.
        until: steps to be made there.
        texts: how they come back: as embeddings, or not at all where this side encodes its own or has sent them.
        compressed: whether latent, solver state and embeddings come back in bfloat16.
        listed: whether the generators were a list.
        tensors: `text.NAME` [B, *] embeddings, `generator.N` [5056] uint8, `latents` [B, *], `sigmas` [S] float64.
    """

    call: dict[str, Any]
    until: int
    texts: Texts = "embeddings"
    compressed: bool = False
    listed: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @classmethod
    def of(cls, pipe: Any, call: Mapping[str, Any], until: int, texts: Texts, compressed: bool) -> Self:
        """The request for a call of the device's pipeline.

        Raises:
            InvalidArgument: an argument that cannot be sent, or no size and none that the pipeline has.
        """
        given = {name: value for name, value in call.items() if value is not None}
        for name in ("height", "width"):
            if name in defaults_of(pipe) and name not in given:
                given[name] = default_size(pipe, name)
        found = arguments.sent(pipe, given, texts=True)
        tensors = {f"text.{name}": value for name, value in given.items() if "prompt_embed" in name}
        generators = given.get("generator")
        listed = isinstance(generators, list | tuple)
        for n, one in enumerate(generators if listed else [] if generators is None else [generators]):
            if not isinstance(one, torch.Generator) or one.device.type != "cpu":
                raise InvalidArgument(f"generator is {short(one)}; only the state of one of the CPU can be sent")
            tensors[f"generator.{n}"] = one.get_state()
        if "timesteps" in given:
            raise InvalidArgument("timesteps cannot be sent; give sigmas, or num_inference_steps")
        if "latents" in given:
            tensors["latents"] = given["latents"]
        if "sigmas" in given:
            tensors["sigmas"] = torch.as_tensor(given["sigmas"], dtype=torch.float64)
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                raise InvalidArgument(f"{name.partition('.')[2] or name} is {short(value)}; give a tensor")
        own = "text.prompt_embeds" in tensors
        made = cls(found, until, "prompt" if own else texts, compressed, listed, tensors)
        made.check(pipe)
        return made

    @property
    def samples(self) -> int:
        """Pictures or clips: of each prompt so many copies."""
        prompt, embeds = self.call.get("prompt", ""), self.tensors.get("text.prompt_embeds")
        count = len(embeds) if embeds is not None else len(prompt) if isinstance(prompt, list) else 1
        return count * math.prod(self.call.get(name, 1) for name in arguments.COPIES)

    @property
    def generators(self) -> list[Tensor]:
        """States, in order."""
        count = sum(name.startswith("generator.") for name in self.tensors)
        return [self.tensors[f"generator.{n}"] for n in range(count)]

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """Texts that were encoded before they were sent, by argument."""
        return {name[5:]: value for name, value in self.tensors.items() if name.startswith("text.")}

    def arguments(self, pipe: Any) -> dict[str, Any]:
        """What to call a pipeline with."""
        device = getattr(pipe, "_execution_device", "cpu")
        found = {name: tuple(value) if name in arguments.PAIRS else value for name, value in self.call.items()}
        found |= {name: value.to(device) for name, value in self.embeddings.items()}
        generators = [torch.Generator("cpu").set_state(state) for state in self.generators]
        if generators:
            found["generator"] = generators if self.listed else generators[0]
        if "latents" in self.tensors:
            found["latents"] = self.tensors["latents"].to(device)
        if "sigmas" in self.tensors:
            found["sigmas"] = self.tensors["sigmas"].tolist()
        return found

    def check(self, pipe: Any) -> None:
        """Refuse what a pipeline cannot be called with, before it is.

        Raises:
            InvalidArgument: naming the argument.
        """
        known = defaults_of(pipe)
        given = [*self.call, *self.embeddings, *(name for name in ("latents", "sigmas") if name in self.tensors)]
        for name in given:
            if name not in known:
                raise InvalidArgument(f"{name} is no argument of {type(pipe).__name__}; leave it out")
        if ("prompt" in self.call) == ("text.prompt_embeds" in self.tensors) and "prompt" in known:
            raise InvalidArgument("prompt or prompt_embeds must be given, and not both; say what to draw")
        for name, value in self.call.items():
            count = self.samples // math.prod(self.call.get(copies, 1) for copies in arguments.COPIES)
            if is_text(name) and isinstance(value, list) and len(value) != count:  # pyright: ignore[reportUnknownArgumentType]
                raise InvalidArgument(f"{name} has {len(value)} texts beside {count} prompts; give as many")  # pyright: ignore[reportUnknownArgumentType]
        count, samples = len(self.generators), self.samples
        if count not in (0, 1, samples) or (count > 1 and not self.listed):
            raise InvalidArgument(
                f"generator has {count} states and the call {self.samples} samples; give one for each"
            )
        if "latents" in self.tensors and len(self.tensors["latents"]) != self.samples:
            raise InvalidArgument(
                f"latents has {len(self.tensors['latents'])} samples and the call {self.samples}; give one for each"
            )

    def to_bytes(self) -> bytes:
        """Equal requests, equal bytes.

        Raises:
            InvalidArgument: it is over 256 MiB, or its texts over 1 MiB.
        """
        document = {name: getattr(self, name) for name in _DOCUMENT}
        return _form(wire.SIZE_CAP).pack(document, self.tensors)

    @classmethod
    def from_bytes(cls, data: bytes, *, cap: int = wire.SIZE_CAP) -> Self:
        """Read what a stranger may have written; nothing is allocated before its header is sound.

        Raises:
            InvalidArgument: whatever is wrong.
        """
        form, where = _form(cap), "request"
        _, document, entries = form.read(data, where)
        form.require_keys(document, set(_DOCUMENT), where, "document", wire.VERSION)
        for name, kind in _DOCUMENT.items():
            if type(document[name]) is not kind:
                raise form.invalid(where, name, f"is {short(document[name])}, not {wire.KINDS[kind]}")
        if not 1 <= document["until"] <= MAX_STEPS:
            raise form.invalid(where, "until", f"is {short(document['until'])} where a number of steps belongs")
        if document["texts"] not in ("embeddings", "prompt"):
            raise form.invalid(where, "texts", f"is {short(document['texts'])} where 'embeddings' or 'prompt' belongs")
        arguments.check_sent(document["call"])
        for name, entry in entries.items():
            kind, rank = _kind_of(name)
            if not rank:
                raise form.invalid(where, "tensors", f"{short(name)} is unknown")
            form.check_entry(name, entry, where, wire.VERSION, dtypes=kind, rank=rank, least=1)
            if name.startswith("generator.") and entry["shape"] != [wire.GENERATOR_BYTES]:
                raise form.invalid(where, name, f"has shape {short(entry['shape'])}, not [{wire.GENERATOR_BYTES}]")
            if len(entry["shape"]) < (1 if rank == 1 else 2):
                raise form.invalid(where, name, f"has shape {short(entry['shape'])}, which has no batch")
        count = sum(name.startswith("generator.") for name in entries)
        if not {f"generator.{n}" for n in range(count)} <= entries.keys():
            raise form.invalid(where, "tensors", "holds generators that are not numbered from 0")
        found = cls(**document, tensors=form.load(data, where))
        wire.check_generators(found.generators)
        return found


def _kind_of(name: str) -> tuple[tuple[str, ...], int]:
    """The dtypes that a tensor of a request may have, and the most axes; 0 of one that it cannot have."""
    if wire.EMBEDDED.fullmatch(name):
        return (*_FLOATS, *(("I64", "BOOL") if "mask" in name else ())), 4
    if re.fullmatch(r"generator\.\d{1,3}", name):
        return ("U8",), 1
    return {"latents": (_FLOATS, 6), "sigmas": (("F64",), 1)}.get(name, ((), 0))


def _form(cap: int) -> Sealed:
    return Sealed(
        kind="split request", key="ertacache-split-request", version=wire.VERSION, error=InvalidArgument, size_cap=cap,
        header_cap=wire.HEADER_CAP, rewrite="ask with SplitClient of the same release",
        shorter="use shorter prompts", smaller="send a smaller batch",
    )  # fmt: skip
