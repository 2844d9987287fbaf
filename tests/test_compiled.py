"""Profiles on denoisers that are compiled, offloaded or changed in the middle of a run."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

import ertacache.runtime.apply as ertacache
from cached import MASK, SITES, T, calls_per_step, latents, profile
from ertacache.errors import CacheConflict
from ertacache.profile.profile import Site

COMPUTED = [int(mark == "#") for mark in MASK]


def state(pipe: Any) -> list[set[str]]:
    """Names of what hangs on the instances that a profile may touch."""
    inner = getattr(pipe.transformer, "_orig_mod", pipe.transformer)
    blocks = [*inner.transformer_blocks, *inner.single_transformer_blocks]
    return [set(vars(owner)) for owner in (pipe.transformer, inner, pipe.scheduler, *blocks)]


class Counting:
    """A backend that runs the graph as it is and counts the attentions in it."""

    def __init__(self) -> None:
        self.attentions = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Any:
        found = sum("scaled_dot_product_attention" in str(node.target) for node in graph.graph.nodes)

        def run(*args: Any) -> Any:
            self.attentions += found
            return graph.forward(*args)

        return run


def compile_module(pipe: Any, backend: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend=backend)


def compile_in_place(pipe: Any, backend: Any) -> None:
    pipe.transformer.compile(backend=backend)


def compile_blocks(pipe: Any, backend: Any) -> None:
    pipe.transformer.compile_repeated_blocks(backend=backend)


@pytest.fixture
def backend() -> Iterator[Counting]:
    """Graphs of one test only: torch keeps them by code, whatever instance they came from."""
    torch._dynamo.reset()
    yield Counting()
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("compiling", [compile_module, compile_in_place, compile_blocks])
def test_a_compiled_denoiser(flux: Any, site: Site, compiling: Any, backend: Counting) -> None:
    wanted = profile(flux, site)
    blocks = len(flux.transformer.transformer_blocks) + len(flux.transformer.single_transformer_blocks)
    with ertacache.apply(flux, wanted):
        expected = latents(flux)
    compiling(flux, backend)
    plain, before = latents(flux), state(flux)  # graphs exist before the profile comes
    backend.attentions = 0
    with ertacache.apply(flux, wanted) as stats:
        torch.testing.assert_close(latents(flux), expected, rtol=1e-5, atol=1e-5)
        assert backend.attentions == 5 * blocks
        assert (stats.computed, stats.predicted) == ({"cond": 5}, {"cond": 5})
    assert state(flux) == before
    assert torch.equal(latents(flux), plain)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("compiling", [compile_module, compile_in_place])
def test_compiling_under_a_profile_is_refused(flux: Any, site: Site, compiling: Any, backend: Counting) -> None:
    ertacache.enable(flux, profile(flux, site))
    compiling(flux, backend)
    with pytest.raises(CacheConflict, match=r"FluxTransformer2DModel was compiled while .*disable.*apply the profile"):
        latents(flux)
    assert backend.attentions == 0


@pytest.mark.parametrize("site", SITES)
def test_offloading_that_puts_its_hooks_on_anew(flux: Any, site: Site) -> None:
    """As `enable_model_cpu_offload` does at the end of every call: all hooks off the denoiser, and on again."""

    def offload() -> None:
        remove_hook_from_module(flux.transformer, recurse=True)
        add_hook_to_module(flux.transformer, ModelHook())
        for block in flux.transformer.transformer_blocks:
            add_hook_to_module(block, ModelHook())

    offload()
    plain = latents(flux)
    with ertacache.apply(flux, profile(flux, site)):
        for _ in range(2):
            assert calls_per_step(flux) == COMPUTED
            offload()
    assert torch.equal(latents(flux), plain)


def test_blocks_that_pass_by_the_profile_are_noticed(flux: Any) -> None:
    last = flux.transformer.single_transformer_blocks[-1]
    wanted = profile(flux, "hidden", "###" + "." * (T - 3))

    for at in (1, 2):  # before a computed step and before a predicted one

        def lose(_: Any, step: int, t: Any, tensors: dict[str, Any], at: int = at) -> dict[str, Any]:
            if step == at:
                last.forward = type(last).forward.__get__(last)
            return tensors

        ertacache.enable(flux, wanted)
        with pytest.raises(CacheConflict, match=r"site 'hidden'.*apply it again"):
            latents(flux, callback_on_step_end=lose)
        with pytest.raises(CacheConflict, match=r"forward was wrapped again"):
            ertacache.disable(flux)
        del last.forward
