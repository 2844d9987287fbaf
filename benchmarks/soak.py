"""Requests with faults injected in every component, each followed by a healthy one that must be bit for bit as ever.

python benchmarks/soak.py [--requests 1000] [--interleavings 100] writes benchmarks/results/soak.json.
"""

import argparse
import importlib.metadata
import json
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import ertacache

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "soak.json"
VERSIONS = ("diffusers", "transformers", "torch")
SEEDS = 4

#: (pipe, seed, more arguments of the call) -> final latents
Request = Callable[..., Tensor]


class Injected(Exception):
    """The fault."""


class CtrlC(KeyboardInterrupt):
    """The same, as a person's interruption."""


@contextmanager
def raising(owner: Any, name: str, at: int, error: type[BaseException]) -> Iterator[None]:
    """A method of an instance, or every call of a module, raises in its `at`-th call."""
    original, count = getattr(owner, name), [0]

    def method(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == at:
            raise error
        return original(*args, **kwargs)

    with mock.patch.object(owner, name, method):
        yield


def stopping(at: int, error: type[BaseException] | None) -> Callable[..., Any]:
    """A step callback that raises at a step, or asks the pipeline to stop."""

    def callback(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == at:
            if error is not None:
                raise error
            pipe._interrupt = True
        return tensors

    return callback


def faulty(pipe: Any, request: Request, component: str, at: int, error: type[BaseException]) -> None:
    """One request in which a component fails at about step `at`."""
    more: dict[str, Any] = {}
    with ExitStack() as stack:
        if component == "tokenizer":
            stack.enter_context(mock.patch.object(type(pipe.tokenizer), "__call__", side_effect=error))
        elif component == "text encoder":
            stack.enter_context(raising(pipe.text_encoder, "forward", 1, error))
        elif component == "denoiser":  # in its middle, below the profile
            stack.enter_context(raising(pipe.transformer.proj_out, "forward", max(1, at // 2), error))
        elif component == "scheduler":  # outside of the profile, as a pipeline's own override
            stack.enter_context(raising(pipe.scheduler, "_init_step_index", 1, error))
        elif component == "VAE":
            stack.enter_context(raising(pipe.vae, "decode", 1, error))
            more["output_type"] = "pt"
        elif component == "callback":
            more["callback_on_step_end"] = stopping(at, error)
        elif component == "interrupt":
            more["callback_on_step_end"] = stopping(at, None)
        else:
            more[component] = {"num_inference_steps": 0, "height": 37, "prompt": 5}[component]
        try:
            request(pipe, 0, **more)
        except (Injected, CtrlC, ValueError, TypeError, ZeroDivisionError, IndexError, ertacache.ErtacacheError):
            return
    if component != "interrupt":
        raise AssertionError(f"the fault in {component} did not show")


COMPONENTS = (
    "tokenizer", "text encoder", "denoiser", "scheduler", "VAE", "callback", "interrupt", "num_inference_steps",
    "height", "prompt",
)  # fmt: skip


def soak(pipes: dict[str, tuple[Any, Request]], requests: int, seed: int) -> dict[str, Any]:
    """Half of the requests fail somewhere, and after each a healthy one is compared with what it gave at first.

    Args:
        pipes: by name, under their profiles: they share nothing.

    Returns:
        How many requests failed in which component, how many were compared, how many of these were not bit-equal.
    """
    chance = random.Random(seed)
    expected = {name: [request(pipe, n) for n in range(SEEDS)] for name, (pipe, request) in pipes.items()}
    faults, wrong = Counter[str](), 0
    for _ in range(requests // 2):
        name = chance.choice(list(pipes))
        pipe, request = pipes[name]
        component, at = chance.choice(COMPONENTS), chance.randrange(1, 7)
        faulty(pipe, request, component, at, chance.choice((Injected, CtrlC)))
        faults[component] += 1
        after, n = chance.choice(list(pipes)), chance.randrange(SEEDS)
        for checked in {name, after}:
            wrong += not torch.equal(pipes[checked][1](pipes[checked][0], n), expected[checked][n])
    return {"faults": dict(sorted(faults.items())), "healthy": requests - requests // 2, "not_bit_equal": wrong}


def interleaved(loops: Callable[[int], Iterator[Tensor]], expected: list[Tensor], rounds: int, seed: int) -> int:
    """How many of three requests on one denoiser, advanced in a random order, did not give what they give alone."""
    chance, wrong = random.Random(seed), 0
    for _ in range(rounds):
        under_way, finals = {n: loops(n) for n in range(3)}, dict[int, Tensor]()
        while under_way:
            n = chance.choice(list(under_way))
            try:
                finals[n] = next(under_way[n])
            except StopIteration:
                del under_way[n]
        wrong += sum(not torch.equal(finals[n], expected[n]) for n in range(3))
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--interleavings", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    import soaked

    start = time.perf_counter()
    with soaked.two_pipelines() as pipes:
        found = soak(pipes, given.requests, given.seed)
    requests = {"number": given.interleavings * 3, **soaked.interleavings(interleaved, given.interleavings, given.seed)}
    header = {
        "seed": given.seed, "machine": platform.machine(), "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - start), "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in VERSIONS},
    }  # fmt: skip
    RESULT.write_text(json.dumps({"header": header, "soak": found, "interleaved": requests}, indent=1) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
