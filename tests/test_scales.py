"""Several guidance scales in one profile: which coefficients serve a run, and what is refused."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cached
import profile_maker
from cached import SITES
from ertacache.core.predictor import Predictor
from ertacache.errors import ProfileMismatch
from ertacache.pipelines.solvers import read_grid
from ertacache.profile.profile import Profile, Site
from ertacache.profile.scales import between, with_scales
from ertacache.runtime import played_run
from ertacache.runtime.apply import apply
from ertacache.runtime.retarget import retargeted
from ertacache.runtime.scales import Scales
from pipelines import CALL, CFG_CALL, PROMPTS, flux
from profile_maker import of_scale, times
from rest_computed import Callback, T, generate, go_on_plainly, refused, video
from rest_computed import fitted as calibrated
from supported import Small

MASK = cached.MASK
#: The field of a kind of guidance, the argument that sets it, and the pipeline.
KINDS: dict[str, tuple[str, str, Callable[[], Small]]] = {
    "embedded": ("embedded_guidance", "guidance_scale", lambda: Small(flux(), CALL, tuple(PROMPTS))),
    "two branches": (
        "guidance_weight",
        "true_cfg_scale",
        lambda: Small(flux(guidance_embeds=False, seed=5), CFG_CALL, tuple(PROMPTS)),
    ),
}
SCALES = (3.0, 5.0, 8.0)


class Kind:
    """A pipeline, and a profile of it for each scale."""

    def __init__(self, kind: str, site: Site = "guided") -> None:
        self.field, self.argument, make = KINDS[kind]
        self.small = make()
        make_profile = cached.profile if site == "hidden" else cached.fitted
        own = make_profile(self.small.pipe, site)
        self.apart = [of_scale(own, self.field, scale) for scale in SCALES]
        self.joined = with_scales(self.apart)

    def run(self, profile: Profile, scale: float, **options: Any) -> Tensor:
        with apply(self.small.pipe, profile, **options) as stats:
            final = generate(self.small, **{self.argument: scale}).final
        assert set(stats.predicted.values()) == {5} and stats.reason is None
        return final


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


# -- which coefficients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
def test_a_scale_that_was_fitted_has_its_own_coefficients_bit_for_bit(kind: str, site: Site) -> None:
    own = Kind(kind, site)
    finals = [own.run(own.joined, scale) for scale in SCALES]
    for alone, scale, final in zip(own.apart, SCALES, finals, strict=True):
        assert torch.equal(own.run(alone, scale), final)
    assert all((one - other).abs().max() > 1e-3 for one, other in itertools.pairwise(finals))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("scale", "pair", "share"), [(4.0, 0, 0.5), (6.5, 1, 0.5), (3.5, 0, 0.25), (7.25, 1, 0.75)])
def test_between_two_scales_coefficients_lie_on_a_line(
    kind: str, site: Site, scale: float, pair: int, share: float
) -> None:
    own = Kind(kind, site)
    low, high = own.apart[pair].predictor, own.apart[pair + 1].predictor
    ends = {name: (getattr(low, name).double(), getattr(high, name).double()) for name in "adb"}
    tables = {name: ((1 - share) * first + share * last).float() for name, (first, last) in ends.items()}
    facts = replace(own.apart[0].provenance, **{own.field: scale})
    by_hand = replace(own.apart[0], predictor=replace(low, **tables), provenance=facts)
    assert torch.equal(own.run(own.joined, scale), own.run(by_hand, scale))
    middle = between(own.apart[pair], own.apart[pair + 1], share)
    for name, table in tables.items():
        assert torch.equal(getattr(middle.predictor, name), table)
    assert getattr(middle.provenance, own.field) == scale


def test_the_mean_of_two_tables_is_exact(kind: str) -> None:
    """Coefficients of 64ths, whose mean is a float."""
    own = Kind(kind)
    a, b = (profile_maker.table(T, 1, 2, 2) * factor for factor in (1.0, 3.0))
    for table in (a, b):
        table[list(own.joined.schedule.computed_steps)] = 0
        for i in own.joined.schedule.predicted_steps:
            table[i, :, :, own.joined.schedule.depth(i) :] = 0
    names, zero = own.joined.predictor.sources[:2], torch.zeros(T, 1)
    low, mean, high = (
        replace(own.apart[0], predictor=Predictor(("guided",), names, table / 16, zero, zero), provenance=facts)
        for table, facts in (
            (a, replace(own.apart[0].provenance, **{own.field: 3.0})),
            (2 * a, replace(own.apart[0].provenance, **{own.field: 4.0})),
            (b, replace(own.apart[0].provenance, **{own.field: 5.0})),
        )
    )
    assert torch.equal(between(low, high, 0.5).predictor.a, mean.predictor.a)
    assert torch.equal(own.run(with_scales([low, high]), 4.0), own.run(mean, 4.0))


def test_a_scale_within_a_hundredth_of_a_fitted_one_is_that(kind: str) -> None:
    own = Kind(kind)
    for scale, n in ((2.98, 0), (3.02, 0), (5.04, 1), (8.07, 2)):
        assert torch.equal(own.run(own.joined, scale), own.run(own.apart[n], scale))


def test_runs_of_one_pipeline_each_have_their_own_scale(kind: str) -> None:
    own = Kind(kind)
    wanted = [own.run(own.joined, scale) for scale in (3.0, 4.0, 8.0)]
    for options in ({}, {"offload_history": "cpu"}):
        with apply(own.small.pipe, own.joined, **options) as stats:
            for scale, final in zip((3.0, 4.0, 8.0, 3.0), [*wanted, wanted[0]], strict=True):
                assert torch.equal(generate(own.small, **{own.argument: scale}).final, final)
        assert stats.runs == 4


def test_a_history_is_as_deep_as_any_scale_needs(kind: str) -> None:
    """The second scale reads the newest outputs only."""
    own = Kind(kind)
    a = own.apart[1].predictor.a.clone()
    a[:, :, :, 1] = 0
    short = replace(own.apart[1], predictor=replace(own.apart[1].predictor, a=a))
    joined = with_scales([short, own.apart[0], own.apart[2]])
    for profile, scale in ((own.apart[0], 3.0), (short, 5.0), (own.apart[2], 8.0)):
        assert torch.equal(own.run(joined, scale), own.run(profile, scale))


def test_reuse_is_right_at_any_guidance(kind: str) -> None:
    own = Kind(kind)
    reuse = cached.profile(own.small.pipe, "output")
    joined = with_scales([replace(reuse, provenance=p.provenance) for p in own.apart])
    for scale in (2.0, 4.0, 20.0):
        assert torch.equal(own.run(joined, scale), own.run(reuse, scale))


# -- guidance that is another, unknown or changes -----------------------------------------------------------

WORDS = {
    "embedded": "embedded guidance: the profile was calibrated at 3 to 8, this call runs at {}; use",
    "two branches": "guidance weight: at step 0 the profile was calibrated at 3 to 8, this call runs at {}; use",
}


@pytest.mark.parametrize("scale", [2.0, 8.2, 12.5])
def test_a_scale_outside_is_refused_or_computed(kind: str, scale: float, caplog: pytest.LogCaptureFixture) -> None:
    own = Kind(kind)
    call = {own.argument: scale}
    words = WORDS[kind].format(f"{scale:g}")
    said = refused(own.small, own.joined, None, **call)
    assert said.startswith(words) and said.endswith("or calibrate with guidance_scales that reach this one")
    ran, stats = go_on_plainly(own.small, own.joined, None, caplog, **call)
    assert str(stats.reason) == said and not stats.predicted
    assert torch.equal(ran.final, generate(own.small, **call).final)


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("mask", ["##..#.#..#", "#...#.#..#", "#.#...#..#"])
def test_nothing_is_predicted_before_the_guidance_is_known(
    mask: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The branches hardly differ at the first step: the second tells, whether or not its device is asked at once."""
    monkeypatch.setattr(played_run, "at_once", lambda output: not waits)
    own = Kind("two branches")
    plain = cached.fitted(own.small.pipe, "guided", mask)

    def at(scale: float) -> Profile:
        profile = of_scale(plain, own.field, scale)
        return replace(profile, provenance=replace(profile.provenance, step_weights=(None, *[scale] * (T - 1))))

    with apply(own.small.pipe, with_scales([at(3.0), at(5.0)])) as stats:
        final = generate(own.small, **{own.argument: 5.0})
    assert final.calls[:2] == [2, 2] and stats.computed["cond"] == 5  # of the mask, and step 1
    if mask[1] == "#":
        with apply(own.small.pipe, at(5.0)):
            assert torch.equal(generate(own.small, **{own.argument: 5.0}).final, final.final)


def test_guidance_that_no_step_tells_has_every_step_computed() -> None:
    own = Kind("two branches")
    call = {"negative_prompt": own.small.prompts[0], own.argument: 5.0}
    with apply(own.small.pipe, own.joined) as stats:
        ran = generate(own.small, **call)
    assert not stats.predicted and torch.equal(ran.final, generate(own.small, **call).final)
    assert stats.reason == "guidance weight: no computed step told it, so every step was computed"


def test_guidance_that_changes_between_two_scales(caplog: pytest.LogCaptureFixture) -> None:
    small = video()
    base = calibrated(small, "guided")

    def at(scale: float) -> Profile:
        weights = tuple(None if weight is None else scale for weight in base.provenance.step_weights)
        facts = replace(base.provenance, guidance_weight=scale, step_weights=weights)
        return replace(times(base, scale / 5), provenance=facts)

    joined = with_scales([at(4.0), at(6.0)])

    def weaken(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            pipe._guidance_scale = 5.5
        return {}

    _check_change(small, joined, weaken, caplog)
    with apply(small.pipe, joined) as stats:
        generate(small)
    assert stats.predicted["cond_uncond"] == 5 and stats.reason is None


def _check_change(small: Small, joined: Profile, change: Callback, caplog: pytest.LogCaptureFixture) -> None:
    words = "guidance weight: at step 6 the profile was calibrated at 5, this call runs at 5.5; use that guidance"
    assert refused(small, joined, change).startswith(words)
    ran, stats = go_on_plainly(small, joined, change, caplog)
    assert str(stats.reason).startswith(words) and ran.computed_from() == 6


def maker(scale: float, field: str = "guidance_weight", **changes: Any) -> Profile:
    own = of_scale(profile_maker.make(), field, scale)
    return replace(own, **changes)


def test_where_a_weight_lies() -> None:
    scales = Scales([maker(scale) for scale in (8.0, 3.0, 5.0)])  # in any order
    assert not scales.embedded and [p.provenance.guidance_weight for p in scales.profiles] == [3.0, 5.0, 8.0]
    places = {3.0: 0, 2.971: 0, 3.029: 0, 4.0: 0.5, 4.500001: 0.75, 5.0: 1, 6.5: 1.5, 8.0: 2, 8.079: 2}
    assert {weight: scales.place(0, weight) for weight in places} == places
    assert scales.place(0, None) is None and scales.place(1, 4.0) is None  # no profile knows its weight at step 1
    for weight in (2.96, 8.09, -4.0):
        with pytest.raises(ProfileMismatch, match=rf"calibrated at 3 to 8, this call runs at {weight:.4g}; use"):
            scales.place(0, weight)
    with pytest.raises(ProfileMismatch, match="calibrated at 3 to 8, this call mixes its outputs in another way"):
        scales.place(0, math.nan)


def test_a_denoiser_that_is_given_no_weight_is_refused() -> None:
    scales = Scales([maker(scale, "embedded_guidance") for scale in (3.0, 5.0)])
    assert scales.embedded and scales.place(7, 4.0) == 0.5
    words = "embedded guidance: the profile was calibrated at 3 to 5, this call gives the denoiser none; use guidance"
    with pytest.raises(ProfileMismatch, match=words):
        scales.place(0, None)


def test_another_grid_is_served_at_every_scale(kind: str) -> None:
    own = Kind(kind)
    with pytest.warns(UserWarning, match="retargeted to 15"), apply(own.small.pipe, own.joined, retarget=True) as stats:
        final = generate(own.small, num_inference_steps=15, **{own.argument: 4.0}).final
    assert stats.reason is None and sum(stats.predicted.values()) > 0
    made = [retargeted(p, read_grid(own.small.pipe.scheduler)) for p in own.apart[:2]]
    with apply(own.small.pipe, between(*made, 0.5)):
        assert torch.equal(generate(own.small, num_inference_steps=15, **{own.argument: 4.0}).final, final)
