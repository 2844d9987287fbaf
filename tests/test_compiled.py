"""Profiles on denoisers that are compiled, offloaded or changed in the middle of a run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

import ertacache.runtime.apply as ertacache
import small_token_images as tokens
from cached import MASK, SITES, T, calls_per_step, latents, profile
from combined_compile import WAYS, check_after, check_before, check_in_a_run
from ertacache.errors import CacheConflict
from ertacache.pipelines.models import blocks_of
from ertacache.profile.profile import Site
from supported import calibrated, generate

COMPUTED = [int(mark == "#") for mark in MASK]


WAYS_AND_SITES = [(name, site) for name in WAYS for site in SITES]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "site"), WAYS_AND_SITES)
def test_compiled_before_only_the_graphs_that_are_needed_are_added(name: str, site: str) -> None:
    check_before(WAYS[name], site)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "site"), WAYS_AND_SITES)
def test_compiled_after_it_is_served_or_refused_with_the_remedy(name: str, site: str) -> None:
    words = check_after(WAYS[name], site)
    assert words == "works" if site in WAYS[name].after else "apply it again" in words


@pytest.mark.slow
@pytest.mark.parametrize(("name", "site"), WAYS_AND_SITES)
def test_compiled_by_a_callback_it_is_served_or_refused_too(name: str, site: str) -> None:
    check_in_a_run(WAYS[name], site)


@contextmanager
def outputs_in_one_place(denoiser: torch.nn.Module) -> Iterator[None]:
    """The denoiser and its blocks return the same memory in every call, as under `mode="reduce-overhead"` on a GPU."""
    memory = dict[tuple[Any, ...], torch.Tensor]()

    def graph(part: torch.nn.Module) -> Any:
        forward = part.forward

        def replayed(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
            outputs = forward(*args, **kwargs)
            places = [memory.setdefault((part, n, one.shape), one.clone()) for n, one in enumerate(outputs)]
            return tuple(place.copy_(one) for place, one in zip(places, outputs, strict=True))

        return mock.patch.object(part, "forward", replayed)

    with ExitStack() as stack:
        for part in (denoiser, *blocks_of(denoiser)):
            stack.enter_context(graph(part))
        yield


@pytest.mark.parametrize("site", SITES)
def test_outputs_may_lie_in_one_place_in_calibration_and_under_a_profile(site: Site) -> None:
    small = tokens.flux()
    known = calibrated(small, site)
    with ertacache.apply(small.pipe, known):
        expected = generate(small)
    with outputs_in_one_place(small.pipe.transformer):
        again = calibrated(small, site)
        with ertacache.apply(small.pipe, known) as stats:
            assert torch.equal(generate(small), expected) and stats.predicted == {"cond": 3}
    for name in ("a", "d", "b"):
        assert torch.equal(getattr(again.predictor, name), getattr(known.predictor, name))


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


def test_hooks_that_were_put_around_blocks_later_stay_when_the_profile_goes(flux: Any) -> None:
    plain, blocks = latents(flux), blocks_of(flux.transformer)
    ertacache.enable(flux, profile(flux, "hidden"))
    for block in blocks:
        add_hook_to_module(block, ModelHook())
    assert calls_per_step(flux) == COMPUTED
    ertacache.disable(flux)
    assert torch.equal(latents(flux), plain)
    for block in blocks:
        remove_hook_from_module(block)
        assert block.forward == type(block).forward.__get__(block)
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
