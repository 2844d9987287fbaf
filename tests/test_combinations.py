"""What users combine a profile with, each with the real library: it works, or is refused with the reason."""

from typing import Any

import pytest
import torch

import combined_calls
import combined_placement
import combined_ranks
import combined_weights
import ertacache
import small_token_images as tokens
from benchmark_scripts import load
from combinations import ROUNDING, distance
from every_combination import NAMES, ROWS, found, found_on_ranks, fresh_page, missing
from formula_by_hand import formula_by_hand
from pipelines import PROMPTS
from supported import SITES, T, calibrated, generate

# numpy on diffusers' own schedulers, and what diffusers' GGUF reader and peft say of their own
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]


def need(*names: str) -> None:
    if absent := missing(names):
        pytest.skip(f"{', '.join(absent)} not installed")


def _marked(name: str) -> Any:
    slow = ROWS[NAMES[name]][name].slow
    return pytest.param(name, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("name", [_marked(name) for name in NAMES])
def test_it_works_or_is_refused_with_the_reason(name: str) -> None:
    row = ROWS[NAMES[name]][name]
    need(*row.needs)
    one = found(name)
    assert one.while_applied.startswith("refused: " if row.conflict else "–" if row.on is None else "works")


@pytest.mark.slow
@pytest.mark.parametrize("name", combined_ranks.WAYS)
def test_every_rank_makes_the_same_decisions(name: str) -> None:
    assert found_on_ranks(name).before == "works"


@pytest.mark.parametrize("site", SITES)
def test_a_batch_gives_what_its_prompts_give_alone(site: str) -> None:
    small = tokens.flux()
    profile = calibrated(small, site)

    def run(*numbers: int, **more: Any) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(n) for n in numbers]
        call = {**small.call, "prompt": [PROMPTS[n] for n in numbers], **more}
        return small.pipe(generator=generators, output_type="latent", **call)[0]

    with ertacache.apply(small.pipe, profile) as stats:
        together = run(0, 1)
        assert sum(stats.computed.values()) == profile.schedule.K  # one call for both
        for n in (0, 1):
            assert distance(together[n : n + 1], run(n)) <= ROUNDING
        twice = small.pipe(
            prompt=PROMPTS[0], num_images_per_prompt=2, output_type="latent", **small.call,
            generator=[torch.Generator().manual_seed(n) for n in (0, 0)],
        )[0]  # fmt: skip
        assert distance(twice[:1], run(0)) <= ROUNDING and torch.equal(twice[:1], twice[1:])


def test_a_controlnet_runs_in_every_step() -> None:
    """It is the pipeline's own call, not the denoiser's: a profile saves nothing of it."""
    small = combined_calls.flux_controlnet()
    profile, calls = calibrated(small, "guided"), list[int]()
    handle = small.pipe.controlnet.register_forward_hook(lambda *_: calls.append(1))
    with ertacache.apply(small.pipe, profile) as stats:
        generate(small)
    handle.remove()
    assert len(calls) == T and sum(stats.computed.values()) == profile.schedule.K


def test_a_lora_that_is_gone_leaves_the_profile_valid() -> None:
    need("peft")
    small = tokens.flux()
    profile = calibrated(small, "guided")
    with ertacache.apply(small.pipe, profile):
        expected = generate(small)
    combined_weights.load_lora(small.pipe)
    combined_weights.unload_lora(small.pipe)
    with ertacache.apply(small.pipe, profile):  # which would warn of other weights
        assert torch.equal(generate(small), expected)


_ADDED = ("LoRA", "LoRA, scaled", "several LoRAs", "LoRA, swapped", "LoRA, fused", "IP-Adapter")


@pytest.mark.parametrize("name", _ADDED)
def test_what_is_there_before_the_profile_is_warned_of(name: str) -> None:
    row = combined_weights.ROWS[name]
    need(*row.needs)
    small = row.small()
    profile = calibrated(small, "guided")
    assert row.on is not None
    row.on(small.pipe)
    with pytest.warns(UserWarning, match="these are other weights"):
        ertacache.enable(small.pipe, profile)
    with formula_by_hand(small.pipe, profile):
        by_hand = generate(small)
    assert distance(generate(small), by_hand) <= ROUNDING
    ertacache.disable(small.pipe)
    own = calibrated(small, "guided")
    with ertacache.apply(small.pipe, own):  # calibrated with it: no warning
        generate(small)


@pytest.mark.parametrize("name", ["torchao int8, weights only", "GGUF", "fp8 layerwise casting", "another dtype"])
def test_weights_in_another_form_are_the_same_weights(name: str) -> None:
    row = combined_weights.ROWS[name]
    need(*row.needs)
    small = tokens.flux()
    profile = calibrated(small, "guided")
    assert row.on is not None
    row.on(small.pipe)
    with ertacache.apply(small.pipe, profile):  # no warning
        generate(small)


def test_a_lora_is_swapped_between_the_runs_of_an_enabled_profile() -> None:
    need("peft")
    small = tokens.flux()
    combined_weights.load_lora(small.pipe)
    profile = calibrated(small, "guided")
    seeds, served = (1, 0, 1), list[torch.Tensor]()
    with ertacache.apply(small.pipe, profile):
        for seed in seeds:
            combined_weights.load_lora(small.pipe, seed, hotswap=True)
            served.append(generate(small))
    assert torch.equal(served[0], served[2]) and not torch.equal(served[0], served[1])
    for seed, one in zip(seeds, served, strict=True):
        combined_weights.load_lora(small.pipe, seed, hotswap=True)
        with formula_by_hand(small.pipe, profile):
            assert distance(one, generate(small)) <= ROUNDING


@pytest.mark.parametrize("name", ["model offload", "sequential offload", "group offload by layer",
                                  "group offload by block", "group offload to a disk"])  # fmt: skip
@pytest.mark.parametrize("when", ["before", "while applied"])
def test_offloaded_blocks_are_passed_by_at_site_hidden(name: str, when: str) -> None:
    row = combined_placement.ROWS[name]
    put_on = row.on
    assert put_on is not None
    small, other = tokens.flux(), tokens.flux()
    profile = calibrated(small, "hidden")
    with ertacache.apply(small.pipe, profile):
        expected = generate(small)
    if when == "before":
        put_on(other.pipe)
    with ertacache.apply(other.pipe, profile) as stats:
        for _ in range(2):
            if when != "before" and not stats.computed:
                assert torch.equal(generate(other), expected)
                put_on(other.pipe)
            assert distance(generate(other), expected) <= row.rounding
            assert (stats.computed, stats.predicted) == ({"cond": 5}, {"cond": 3})
    assert distance(generate(other), generate(small)) <= row.rounding


@pytest.mark.parametrize("site", SITES)
def test_a_classic_profile_serves_the_same_parts_behind_blocks(site: str) -> None:
    classic, blocks = tokens.flux(), combined_calls.modular.flux()
    profile = calibrated(classic, site)
    with ertacache.apply(classic.pipe, profile):
        expected = generate(classic, decode=True)
    with ertacache.apply(blocks.pipe, profile) as stats:
        found = generate(blocks, decode=True)
    assert stats.computed == {"cond": 5} and stats.predicted == {"cond": 3}
    assert distance(found, expected) <= ROUNDING


@pytest.fixture(scope="module")
def script() -> Any:
    return load("combinations_page")


@pytest.mark.slow
def test_the_page_is_what_the_checks_find(script: Any) -> None:
    need(*{name for rows in ROWS.values() for row in rows.values() for name in row.needs})
    assert script.PAGE.read_text() == fresh_page(script.page)
