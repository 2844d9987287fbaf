"""Rows of the table of combinations: torch.compile of the denoiser, before and after the profile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import ertacache
import small_token_images as tokens
from combinations import Found, all_computed
from supported import MASK, T, calibrated, generate

SITES = ("output", "guided", "hidden")
WAS_COMPILED = "FluxTransformer2DModel was compiled while a profile is applied to it; .*compile.*apply it again"
#: How much of a run passes through the denoiser's graphs.
K = MASK.count("#")


class Counting:
    """A backend that runs a graph as it is, and counts the graphs and the attentions that ran in them."""

    def __init__(self) -> None:
        self.graphs = self.attentions = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Any:
        self.graphs += 1
        found = sum("scaled_dot_product_attention" in str(node.target) for node in graph.graph.nodes)

        def run(*args: Any) -> Any:
            self.attentions += found
            return graph.forward(*args)

        return run


def whole(pipe: Any, **how: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer, **how)


def in_place(pipe: Any, **how: Any) -> None:
    pipe.transformer.compile(**how)


def blocks(pipe: Any, **how: Any) -> None:
    pipe.transformer.compile_repeated_blocks(**how)


@dataclass(frozen=True)
class Way:
    """One way to compile a denoiser.

    Attributes:
        after: sites at which it may come while a profile is applied, because nothing of the profile is in its graphs;
            at the others that is refused.
        further: graphs that site `hidden` needs beside the plain one, however often a profile comes and goes.
    """

    how: str
    compile: Callable[..., None]
    after: tuple[str, ...] = ()
    further: int = 0

    @property
    def notes(self) -> str:
        """For the table."""
        if not self.further:
            return "at `output` and `guided` nothing of the profile is in the blocks' graphs"
        return (
            "`hidden` needs two graphs beside the plain one, which has the blocks inside: a computed step hands out "
            "what they added, a predicted step has none; they are made once, however often a profile comes and goes"
        )

    def graphs_at(self, site: str) -> int:
        """How many more graphs a profile may make."""
        return self.further if site == "hidden" else 0


WAYS = {
    "torch.compile, whole": Way(
        "`pipe.transformer = torch.compile(pipe.transformer, fullgraph=True)`", whole, further=2,
    ),
    "torch.compile, in place": Way(
        "`pipe.transformer.compile(fullgraph=True)`", in_place, further=2
    ),
    "torch.compile, repeated blocks": Way(
        "`pipe.transformer.compile_repeated_blocks(fullgraph=True)`", blocks, after=("output", "guided"),
    ),
}  # fmt: skip


@contextmanager
def counted() -> Iterator[Counting]:
    """A backend whose graphs are of this block only: torch keeps them by code, whatever instance they came from."""
    torch._dynamo.reset()
    counters.clear()
    try:
        yield Counting()
    finally:
        torch._dynamo.reset()
        counters.clear()


def state(pipe: Any) -> list[set[str]]:
    """Names of what hangs on the instances that a profile may touch."""
    inner = getattr(pipe.transformer, "_orig_mod", pipe.transformer)
    owners = (pipe.transformer, inner, pipe.scheduler, *inner.transformer_blocks, *inner.single_transformer_blocks)
    return [set(vars(owner)) for owner in owners]


def check_before(way: Way, site: str) -> None:
    """Whole graphs; with the profile no graph, no break and no call more than its schedule asks for."""
    small = tokens.flux()
    profile = calibrated(small, site)
    with ertacache.apply(small.pipe, profile):
        expected = generate(small)
    with counted() as backend:
        way.compile(small.pipe, backend=backend, fullgraph=True)
        plain = generate(small)
        graphs, attentions, before = backend.graphs, backend.attentions // T, state(small.pipe)
        for _ in range(2):
            backend.attentions = 0
            with ertacache.apply(small.pipe, profile) as stats:
                assert torch.equal(generate(small), expected)
            assert backend.attentions == K * attentions
            assert (stats.computed, stats.predicted) == ({"cond": K}, {"cond": T - K})
            with ertacache.apply(small.pipe, all_computed(profile)):
                assert torch.equal(generate(small), plain)
            assert torch.equal(generate(small), plain) and state(small.pipe) == before
            assert not counters["graph_break"]
            assert backend.graphs == graphs + way.graphs_at(site)


def check_after(way: Way, site: str) -> str:
    """Compiled while a profile is applied: served as before where nothing of the profile is traced, else refused.

    Where it is refused, the remedy that the error names helps.

    Returns:
        The words of the table.
    """
    small = tokens.flux()
    profile = calibrated(small, site)
    plain = generate(small)
    with counted() as backend:
        ertacache.enable(small.pipe, profile)
        expected = generate(small)
        way.compile(small.pipe, backend=backend)
        told = "works"
        if site in way.after:
            assert torch.equal(generate(small), expected)
        else:
            with pytest.raises(ertacache.CacheConflict, match=WAS_COMPILED) as caught:
                generate(small)
            assert backend.graphs == 0, "something was traced"
            told = f"refused: {caught.value}"
        ertacache.disable(small.pipe)
        graphs = backend.graphs
        with ertacache.apply(small.pipe, profile):
            assert torch.equal(generate(small), expected)
        assert torch.equal(generate(small), plain)
        assert backend.graphs == graphs or site not in way.after, "further graphs without the profile"
    return told


def check_in_a_run(way: Way, site: str) -> None:
    """The same where a callback compiles between two steps."""
    small = tokens.flux()
    profile = calibrated(small, site)
    plain = generate(small)
    with ertacache.apply(small.pipe, profile):
        expected = generate(small)
    for at in (0, 1, 2):  # before a computed, a predicted, a computed step
        small = tokens.flux()

        def late(pipe: Any, step: int, t: Any, tensors: dict[str, Any], at: int = at) -> dict[str, Any]:
            if step == at:
                way.compile(pipe, backend=backend)
            return tensors

        with counted() as backend:
            ertacache.enable(small.pipe, profile)
            run = replace(small, call={**small.call, "callback_on_step_end": late})
            if site in way.after:
                assert torch.equal(generate(run), expected)
            else:
                with pytest.raises(ertacache.CacheConflict, match=WAS_COMPILED):
                    generate(run)
            ertacache.disable(small.pipe)
            assert torch.equal(generate(small), plain)


def found(way: Way) -> Found:
    for site in SITES:
        check_before(way, site)
    after = dict[str, list[str]]()
    for site in SITES:
        after.setdefault(check_after(way, site), []).append(f"`{site}`")
    told = "; ".join(words if len(after) == 1 else f"{', '.join(at)}: {words}" for words, at in after.items())
    before = f"works, at `hidden` with {way.further} further graphs" if way.further else "works"
    return Found("FluxPipeline", before, told, "the profile without it, bit for bit")
