"""Profiles on denoisers that are compiled, offloaded or changed in the middle of a run."""

from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

import ertacache.runtime.apply as ertacache
from cached import MASK, SITES, T, calls_per_step, latents, profile
from combined_compile import WAYS, check_after, check_before
from ertacache.errors import CacheConflict
from ertacache.profile.profile import Site

COMPUTED = [int(mark == "#") for mark in MASK]


_AFTER_ENABLE = "a denoiser that is compiled while a profile is applied is traced with it"
_MORE_GRAPHS = "the blocks of site hidden are compiled again under a profile"


def _ways(attribute: str, reason: str) -> list[Any]:
    return [
        pytest.param(name, site, marks=pytest.mark.xfail(strict=True, reason=reason) if known else ())
        for name, way in WAYS.items()
        for site in SITES
        for known in [site in getattr(way, attribute)]
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "site"), _ways("more_graphs", _MORE_GRAPHS))
def test_compiled_before_no_graph_and_no_break_is_added(name: str, site: str) -> None:
    check_before(WAYS[name], site)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "site"), _ways("traced", _AFTER_ENABLE))
def test_compiled_after_it_is_served_or_refused_with_the_remedy(name: str, site: str) -> None:
    words = check_after(WAYS[name], site)
    assert words == "works" if site in WAYS[name].after else "apply it again" in words


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
