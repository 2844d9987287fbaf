"""What users combine a profile with, each with the real library: it works, or is refused with the reason."""

from typing import Any

import pytest
import torch

import combined_calls
import combined_ranks
import combined_weights
import ertacache
import small_token_images as tokens
from benchmark_scripts import load
from combinations import ROUNDING, distance
from every_combination import NAMES, ROWS, found, found_on_ranks, fresh_page, missing
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


@pytest.mark.xfail(strict=True, reason="a profile does not know the weights it was calibrated with")
def test_a_fused_lora_is_another_set_of_weights() -> None:
    need("peft")
    small = tokens.flux()
    profile = calibrated(small, "guided")
    combined_weights.lora_fused(small.pipe)
    with pytest.warns(UserWarning, match="weights"):
        ertacache.enable(small.pipe, profile)
    ertacache.disable(small.pipe)


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
