"""Profiles of several guidance scales in one file: what stands side by side, what lies between, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import profile_maker
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.profile.profile import Profile, Rectifier
from ertacache.profile.scales import between, with_scales
from ertacache.runtime.grids import pick
from numbered_profile import straight
from profile_maker import of_scale


def maker(scale: float, field: str = "guidance_weight", **changes: Any) -> Profile:
    own = of_scale(profile_maker.make(), field, scale)
    return replace(own, **changes)


GRIDS = {"base_sigmas": straight(5), "sigmas": straight(5)}


def test_what_is_saved_comes_back_and_says_its_scales(tmp_path: Path) -> None:
    joined = with_scales([maker(scale) for scale in (7.0, 3.5, 5.0)])
    found = Profile.load(joined.save(tmp_path / "p.safetensors"))
    assert found == joined and [own.provenance.guidance_weight for own in (found, *found.others)] == [7.0, 3.5, 5.0]
    lines = [line for line in joined.summary().splitlines() if line.startswith("guidance:")]
    assert lines == ["guidance: 7, 3.5", "guidance: 3.5, 3.5", "guidance: 5, 3.5"]
    assert "3 guidance scales" in repr(joined) and "time grids" not in repr(joined)


def test_sizes_and_scales_occur_together() -> None:
    apart = [maker(scale, others=(maker(scale, **GRIDS),)) for scale in (3.0, 5.0)]
    joined = with_scales(apart)
    assert len(joined.others) == 3 and "2 time grids, 2 guidance scales" in repr(joined)
    assert Profile.from_bytes(joined.to_bytes()) == joined
    own, other = pick(joined, joined.base_sigmas), pick(joined, straight(5))
    assert [p.provenance.guidance_weight for p in (*own, *other)] == [3.0, 5.0, 3.0, 5.0]
    assert all(torch.equal(p.base_sigmas, joined.base_sigmas) for p in own) and not isinstance(other, str)
    assert [replace(p, others=()) for p in other] == [maker(scale, **GRIDS) for scale in (3.0, 5.0)]


def test_weights_by_step_lie_on_a_line_too() -> None:
    facts = profile_maker.facts(
        num_inference_steps=5, boundaries=(2,), later_weights=(4.0,), step_weights=(3.0, None, 2.0, 1.0, 5.0)
    )
    schedule = Schedule.from_mask("#.#.#")
    low = profile_maker.make(provenance=facts, predictor=Predictor.residual_reuse(schedule, ("guided",)))
    high = replace(low, provenance=replace(facts, guidance_weight=9.0, later_weights=(8.0,), step_weights=(4.0,) * 5))
    middle = between(low, high, 0.25).provenance
    assert (middle.guidance_weight, middle.later_weights) == (7.5, (5.0,))
    assert middle.step_weights == (3.25, None, 2.5, 1.75, 4.75) and middle.embedded_guidance == 3.5
    assert not middle.heldout and not middle.measured


RECTIFIER = Rectifier(torch.zeros(5, 1), torch.zeros(5, 1))
FIVE = profile_maker.make().predictor
CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "one": (lambda: with_scales([maker(3.0)]), r"profiles has 1; give one for each of two or more guidance scales"),
    "none": (lambda: with_scales([]), r"profiles has 0; give"),
    "other grids": (
        lambda: with_scales([maker(3.0), maker(5.0, **GRIDS)]),
        r"profiles\[1\] is on other time grids than profiles\[0\]; calibrate at the same sizes",
    ),
    "fewer grids": (
        lambda: with_scales([maker(3.0, others=(maker(3.0, **GRIDS),)), maker(5.0)]),
        r"profiles\[1\] is on other time grids",
    ),
    "the same scale": (
        lambda: with_scales([maker(3.0), maker(3.02)]),
        r"others\[0\].base_sigmas is the grid of a profile before it, and the guidance is embedded 3.5, weight 3.02 "
        r"where that has embedded 3.5, weight 3.0; keep one for each grid, or one",
    ),
    "the same scale as the second": (
        lambda: with_scales([maker(3.0), maker(5.0), maker(5.0)]),
        r"others\[1\].base_sigmas is the grid",
    ),
    "both kinds at once": (
        lambda: with_scales([maker(3.0), maker(5.0, provenance=profile_maker.facts(embedded_guidance=9.0))]),
        r"others\[0\].base_sigmas is the grid .* weight 7.0 where that has embedded 3.5, weight 3.0",
    ),
    "one without guidance": (
        lambda: with_scales([maker(3.0), maker(5.0, provenance=profile_maker.facts(guidance_weight=None))]),
        r"others\[0\].base_sigmas is the grid .* weight None where",
    ),
    "another schedule": (
        lambda: with_scales([maker(3.0), maker(5.0, **_of_mask("#..##"))]),
        r"others\[0\].schedule is '#..##' where a profile before it on the same grid has '#.#.#'; profiles of one grid",
    ),
    "another adjusted grid": (
        lambda: with_scales([maker(3.0), maker(5.0, sigmas=maker(3.0).base_sigmas)]),
        r"others\[0\].sigmas is \[1.0, 0.875, 0.75.* where a profile before it .* has \[1.0, 0.875, 0.8125",
    ),
    "other sources": (
        lambda: with_scales([maker(3.0), maker(5.0, predictor=replace(FIVE, sources=("cond", "guided")))]),
        r"others\[0\].sources is \('cond', 'guided'\) where .* has \('cond', 'uncond'\)",
    ),
    "other shapes": (
        lambda: with_scales([maker(3.0), maker(5.0, predictor=replace(FIVE, a=torch.cat([FIVE.a, FIVE.a * 0], 3)))]),
        r"others\[0\].predictor.a.shape is \[5, 1, 2, 4, 1, 3\] where .* has \[5, 1, 2, 2, 1, 3\]",
    ),
    "other calls": (
        lambda: with_scales(
            [maker(3.0), maker(5.0, provenance=profile_maker.facts(calls=[[0, {"cond": 1, "uncond": 1}]]))]
        ),
        r"others\[0\].provenance.calls is \(\(0, \{'cond': 1, 'uncond': 1\}\),\) where .* has \(\)",
    ),
    "a rectifier": (
        lambda: with_scales([maker(3.0), maker(5.0, rectifier=RECTIFIER)]),
        r"others\[0\] is on the grid of a profile before it and one of them has a rectifier, of which nothing lies",
    ),
    "another model": (
        lambda: with_scales([maker(3.0), maker(5.0, provenance=profile_maker.facts(model_class="Other"))]),
        r"others\[0\].provenance.model_class is 'Other'",
    ),
    "too many": (
        lambda: with_scales([maker(3.0 + n) for n in range(17)]),
        r"others has 16 profiles; keep at most 15",
    ),
}


def _of_mask(mask: str) -> dict[str, Any]:
    schedule = Schedule.from_mask(mask)
    a = profile_maker.rows(profile_maker.table(5, 1, 2, 2, 1, 3), schedule)
    a[1:3, :, :, 1] = 0
    return {
        "schedule": schedule,
        "predictor": Predictor(("guided",), ("cond", "uncond"), a, a[:, :, 0, 0], a[:, :, 0, 0]),
    }


@pytest.mark.parametrize("case", CASES)
def test_scales_that_do_not_differ_in_guidance_alone_are_refused(case: str) -> None:
    make, words = CASES[case]
    with pytest.raises(InvalidArgument, match=words):
        make()


def test_sixteen_scales_fit() -> None:
    assert len(with_scales([maker(3.0 + n) for n in range(16)]).others) == 15
