"""Real pipeline classes of diffusers, as far as this package promises to serve them."""

from dataclasses import replace
from typing import Any

import pytest

import ertacache.runtime.apply as ertacache
from benchmark_scripts import load
from ertacache.calibration.calibrate import calibrate
from ertacache.errors import ProfileMismatch
from ertacache.profile.profile import Profile, Site
from every_pipeline import NAMES, fresh_page, result, small, solver_result
from small_solvers import SOLVERS
from supported import MASK, SITES, T, calibrated, generate, watched

# numpy on diffusers' own schedulers
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", NAMES)
def test_calls_follow_the_schedule_and_nothing_is_left_behind(name: str, site: str) -> None:
    found = result(name, site)
    if not found.refused:
        assert set(found.computed.values()) == {MASK.count("#")}
        assert set(found.predicted.values()) == {T - MASK.count("#")}


@pytest.mark.parametrize("name", SOLVERS)
def test_schedulers_are_served_or_refused_with_the_reason(name: str) -> None:
    found, _ = solver_result(name)
    assert bool(found.refused) != bool(found.computed)


def counts(name: str, profile: Profile, **call: Any) -> list[list[str]]:
    """What runs, step by step, under a profile."""
    one = small(name)
    with watched(one.pipe) as watch, ertacache.apply(one.pipe, profile):
        generate(replace(one, call={**one.call, **call}))
    return watch.steps[:-1]


def test_a_learned_variance_can_be_reused_at_output() -> None:
    """As the refusal of its residual says."""
    one = small("PixArt-Σ")
    profile = calibrate(
        one.pipe, one.prompts, basis="reuse", site="output", schedule=MASK, show_progress=False, **one.call
    )
    assert [len(step) for step in counts("PixArt-Σ", profile)] == [int(mark == "#") for mark in MASK]


@pytest.mark.parametrize("name", ["Qwen-Image", "Lumina 2", "HiDream", "Z-Image", "PixArt-Σ"])
def test_another_guidance_weight_is_seen_through_what_the_pipeline_does_to_it(name: str) -> None:
    """Qwen-Image and Lumina 2 rescale rows, Lumina 2, HiDream and Z-Image negate, PixArt-Σ cuts a variance off."""
    one = small(name)
    key = "true_cfg_scale" if "true_cfg_scale" in one.call else "guidance_scale"
    profile = calibrated(one, "guided")
    assert profile.provenance.guidance_weight is not None
    with pytest.raises(ProfileMismatch, match="guidance weight"):
        counts(name, profile, **{key: 4.4})


def test_a_branch_may_end_within_a_run() -> None:
    """Lumina 2 leaves the unconditional call out of the later steps."""
    one = small("Lumina 2")
    cut = replace(one, call={**one.call, "cfg_trunc_ratio": 0.5})
    found = counts("Lumina 2", calibrated(cut, "guided"), cfg_trunc_ratio=0.5)
    assert [len(step) for step in found] == [2, 2, 0, 2, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("site", "calls"), [("output", [1, 1, 0, 1, 1, 0, 1, 1]), ("guided", [1, 1, 0, 1, 0, 0, 1, 1])]
)
def test_a_batch_may_shrink_within_a_run(site: Site, calls: list[int]) -> None:
    """Z-Image has both branches in one batch, and later one: no output of two goes on to a step of one."""
    one = small("Z-Image")
    profile = calibrated(replace(one, call={**one.call, "cfg_truncation": 0.2}), site)
    assert profile.provenance.calls == ((0, {"call0": 2}), (4, {"call0": 1}))
    assert [len(step) for step in counts("Z-Image", profile, cfg_truncation=0.2)] == calls
    if site == "guided":
        with pytest.raises(ProfileMismatch, match=r"guidance branches: at step 4 the profile has 1 .* this call 2"):
            counts("Z-Image", profile)


@pytest.mark.parametrize("name", ["FLUX.2", "Qwen-Image", "Chroma"])
def test_channels_of_tokens_are_last(name: str) -> None:
    """What the solver integrates is [B, N, C] there; a profile then serves other sizes."""
    profile = calibrated(small(name), "guided")
    assert profile.provenance.channel_axis == -1
    assert [bool(step) for step in counts(name, profile, height=48)] == [mark == "#" for mark in MASK]


@pytest.fixture(scope="module")
def script() -> Any:
    return load("supported_page")


def test_the_page_is_what_the_checks_find(script: Any) -> None:
    assert script.PAGE.read_text() == fresh_page(script.page)
