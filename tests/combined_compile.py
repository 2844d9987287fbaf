"""Rows of the table of combinations: torch.compile of the denoiser, before and after the profile."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.utils import counters

import ertacache
import small_token_images as tokens
from combinations import Found, all_computed
from supported import MASK, T, calibrated, generate

SITES = ("output", "guided", "hidden")
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
        more_graphs: sites at which today further graphs are made under a profile.
        traced: sites at which today a profile is traced where it is compiled later.
    """

    how: str
    compile: Callable[..., None]
    after: tuple[str, ...] = ()
    more_graphs: tuple[str, ...] = ()
    traced: tuple[str, ...] = ()


WAYS = {
    "torch.compile, whole": Way(
        "`pipe.transformer = torch.compile(pipe.transformer, fullgraph=True)`", whole, more_graphs=("hidden",),
    ),
    "torch.compile, in place": Way(
        "`pipe.transformer.compile(fullgraph=True)`", in_place, more_graphs=("hidden",)
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
        backend.attentions = 0
        with ertacache.apply(small.pipe, profile) as stats:
            assert torch.equal(generate(small), expected)
        assert backend.attentions == K * attentions
        assert (stats.computed, stats.predicted) == ({"cond": K}, {"cond": T - K})
        with ertacache.apply(small.pipe, all_computed(profile)):
            assert torch.equal(generate(small), plain)
        assert torch.equal(generate(small), plain) and state(small.pipe) == before
        assert not counters["graph_break"]
        assert backend.graphs == graphs, "further graphs under the profile"


def check_after(way: Way, site: str) -> str:
    """Compiled while a profile is applied: served as before where nothing of the profile is traced, else refused.

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
        if site in way.after:
            assert torch.equal(generate(small), expected)
            graphs = backend.graphs
            ertacache.disable(small.pipe)
            assert torch.equal(generate(small), plain)
            assert backend.graphs == graphs, "further graphs without the profile"
            return "works"
        try:
            generate(small)
        except ertacache.CacheConflict as error:
            assert re.search("compile", str(error))
            return f"refused: {error}"
        raise AssertionError("neither served nor refused")


def found(way: Way) -> Found:
    for site in SITES:
        if site not in way.more_graphs:
            check_before(way, site)
    after = dict[str, list[str]]()
    for site in SITES:
        words = "fails today" if site in way.traced else check_after(way, site)
        after.setdefault(words, []).append(f"`{site}`")
    told = "; ".join(words if len(after) == 1 else f"{', '.join(at)}: {words}" for words, at in after.items())
    before = "works"
    if way.more_graphs:
        before += ", at " + ", ".join(f"`{site}`" for site in way.more_graphs) + " with further graphs today"
    return Found("FluxPipeline", before, told, "the profile without it, bit for bit")
