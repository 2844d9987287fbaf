"""Damaged and hostile handovers: `python benchmarks/handover_fuzz.py` writes benchmarks/results/handover_fuzz.json.

Sound blobs of every solver are changed at random, with the checksum made anew in most of them, and read. What comes of
it must be `HandoverInvalid`, or a handover that is then refused by a pipeline with a named error, or fits it.
"""

import argparse
import collections
import copy
import hashlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import nn

from ertacache.errors import ErtacacheError, HandoverInvalid
from ertacache.profile.fingerprint import storable
from ertacache.runtime.pair import space_of
from ertacache.split import Handover
from ertacache.split.matching import check_handover
from ertacache.split.solver_state import MEMORIES, SolverState, expected

OUT = Path(__file__).parent / "results" / "handover_fuzz.json"
STEPS = 6
#: Values that readers trip over.
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 3, 2**31, 2**63, -(2**70), 1e300, 0.5, "", "x" * 300, [], [1] * 5000, {}, {"a": 1},
    [[[[[[[[[[[]]]]]]]]]]], "DDIMScheduler", "PNDMScheduler", "F16", "I64", "U8", [1, 4, 2, 2], [2**40], [0], [-1],
    "__metadata__", float("inf"), float("nan"), "\ud800", "\u0000",
)  # fmt: skip


def pipeline(scheduler: str) -> Any:
    """As much of a pipeline as a handover is compared with."""
    unet = nn.Identity()
    unet.config = {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 8}  # pyright: ignore
    kwargs = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {}
    vae = SimpleNamespace(config={"scaling_factor": 0.5, "latent_channels": 4})
    return SimpleNamespace(unet=unet, vae=vae, scheduler=getattr(diffusers, scheduler)(**kwargs), config={})


def sound(scheduler: str, step: int = 2) -> Handover:
    """A small handover of a solver."""
    row = next(row for row in MEMORIES if row.scheduler == scheduler)
    pipe, latent = pipeline(scheduler), torch.randn(1, 4, 2, 2)
    order = row.order_of(pipe.scheduler.config)
    tensors = {
        name: torch.tensor(500) if times else torch.randn_like(latent)
        for name, times in expected(row, step, order).items()
    }
    config = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {}
    return Handover(
        step=step, calls=step, latent=latent, timesteps=torch.arange(STEPS - 1, -1, -1) * 100,
        sigmas=torch.linspace(1, 0, STEPS + 1) if row.sigmas else None,
        solver=SolverState(scheduler, config, {name: high(step, order) for name, _, high in row.counts}, tensors),
        call={"num_inference_steps": STEPS, "guidance_scale": 4.0, "height": 16, "width": 16, "prompt": "a ring"},
        embeddings={"prompt_embeds": torch.randn(1, 3, 8)}, generators=(torch.Generator().get_state(),),
        space=storable(space_of(pipe)),
        source={"pipeline": "P", "model": "M", "weights": "", "versions": {"torch": "2"}},
    )  # fmt: skip


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in decoded JSON, as its container and key."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from nodes(item)


def changed_tree(tree: Any, rng: random.Random) -> None:
    """One random change of decoded JSON, in place."""
    places = list(nodes(tree))
    if not places:
        return
    holder, key = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(["extra", "state.ets.9", "latent", "", "text.prompt_embeds", "generator.7"])] = holder[
                key
            ]
        case 2:
            other, name = rng.choice(places)
            holder[key] = copy.deepcopy(other[name]) if name in other or isinstance(other, list) else None
        case 3 if isinstance(holder[key], int | float):
            holder[key] = holder[key] * rng.choice([-1, 2, 0, 1000]) + rng.choice([-1, 0, 1])
        case _:
            holder[key] = copy.deepcopy(rng.choice(ODD))


def framed(header: dict[str, Any], body: bytes) -> bytes:
    """The blob of a header, with the padding that safetensors wants."""
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def resealed(data: bytes) -> bytes:
    """The same bytes with the checksum that belongs to them, where there is one."""
    found = re.search(rb'checksum\\\\?": ?\\\\?"([0-9a-f]{64})', data)
    if found is None:
        return data
    return data.replace(found[1], hashlib.sha256(data.replace(found[1], b"0" * 64, 1)).hexdigest().encode(), 1)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A blob that is not what it was; in most of them the checksum is right."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    kind = rng.randrange(8)
    if kind == 0:  # bytes anywhere, checksum left
        raw = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        return bytes(raw)
    if kind == 1:  # cut or lengthened
        return data[: rng.randrange(len(data))] if rng.random() < 0.7 else data + rng.randbytes(rng.randint(1, 64))
    if kind == 2:  # bytes of the tensors
        for _ in range(rng.randint(1, 8)):
            body[rng.randrange(len(body))] = rng.choice([0, 255, 127, 128, rng.randrange(256)])
    elif kind in (3, 4):  # names, dtypes, shapes, places
        metadata = header.pop("__metadata__")
        changed_tree(header, rng)
        if rng.random() < 0.95:
            header["__metadata__"] = metadata
    else:  # the document
        document = json.loads(header["__metadata__"]["ertacache-handover"])
        checksum = document.pop("checksum")
        for _ in range(rng.randint(1, 3)):
            changed_tree(document, rng)
        document["checksum"] = checksum
        header["__metadata__"]["ertacache-handover"] = json.dumps(document)
    return resealed(framed(header, bytes(body)))


def run(count: int, seed: int) -> dict[str, Any]:
    """Read so many changed blobs; what came of them, by the field that the error names."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    blobs = {row.scheduler: sound(row.scheduler).to_bytes() for row in MEMORIES}
    pipes = {name: pipeline(name) for name in blobs}
    outcomes: collections.Counter[str] = collections.Counter()
    found: list[str] = []
    for n in range(count):
        name = rng.choice(list(blobs))
        data = mutated(blobs[name], rng)
        try:
            handover = Handover.from_bytes(data)
        except HandoverInvalid as error:
            outcomes[re.sub(r"[ '.].*", "", str(error).partition(": ")[2].partition(":")[0])] += 1
            continue
        except Exception as error:
            found.append(f"{n}: from_bytes: {type(error).__name__}: {error}"[:300])
            continue
        try:
            check_handover(handover, pipes[name])
            outcomes["fits"] += 1
        except ErtacacheError as error:
            outcomes[f"{type(error).__name__}, by a pipeline"] += 1
        except Exception as error:
            found.append(f"{n}: check_handover: {type(error).__name__}: {error}"[:300])
    return {"mutations": count, "seed": seed, "other_errors": found, "outcomes": dict(sorted(outcomes.items()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    result = run(given.count, given.seed)
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
