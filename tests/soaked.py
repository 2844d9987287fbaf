"""The pipelines that benchmarks/soak.py and its test ask again and again."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import ertacache.runtime.apply as ertacache
from cached import profile
from pipelines import CALL, CFG_CALL, PROMPTS, flux
from small_requests import SITES, Case, by_hand


def request(pipe: Any, seed: int, **more: Any) -> Tensor:
    """Final latents of one request."""
    call = CALL if pipe.transformer.config.guidance_embeds else CFG_CALL
    generator = torch.Generator().manual_seed(seed)
    arguments = {**call, "prompt": PROMPTS[seed], "output_type": "latent", "generator": generator, **more}
    return pipe(**arguments)[0]


@contextmanager
def two_pipelines() -> Iterator[dict[str, tuple[Any, Any]]]:
    """FLUX with embedded guidance at site output, and in two branches at site guided, each under its profile."""
    embedded, branches = flux(), flux(guidance_embeds=False, seed=1)
    with (
        ertacache.apply(embedded, profile(embedded, "output")),
        ertacache.apply(branches, profile(branches, "guided")),
    ):
        yield {"embedded": (embedded, request), "branches": (branches, request)}


@torch.no_grad()
def interleavings(interleaved: Callable[..., int], rounds: int, seed: int) -> dict[str, int]:
    """At each site, how many of three requests by hand did not give what they give alone."""
    wrong = dict[str, int]()
    for site in SITES:
        case = Case(site)
        with case.applied():
            wrong[f"not_bit_equal_{site}"] = interleaved(
                lambda n, case=case: by_hand(case.model, copy.deepcopy(case.pipe.scheduler), n),
                case.cached, rounds, seed,
            )  # fmt: skip
    return wrong
