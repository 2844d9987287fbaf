"""One calibration at several guidance scales: each as if it were alone, what lies between, and what is refused."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dummy_pipeline
from cached import latents
from dummy_pipeline import mixture_pipeline
from ertacache.calibration import outcome
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.guidance_scales import GuidanceScales
from ertacache.calibration.method import Method
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument, ProfileMismatch
from ertacache.metrics import PairedMetrics, figures
from ertacache.profile.profile import Profile
from ertacache.profile.scales import between
from ertacache.runtime.apply import apply
from pipelines import CALL, CFG_CALL, PROMPTS, flux

pytestmark = pytest.mark.filterwarnings("ignore:.*(judged prompts cannot tell|this plan loses):UserWarning")

SMALL = {"height": 32, "width": 32}
EMBEDDED = {name: value for name, value in {**CALL, **SMALL}.items() if name != "guidance_scale"}
TRUE_CFG = {name: value for name, value in {**CFG_CALL, **SMALL}.items() if name != "true_cfg_scale"}
#: The pipeline, its call without the scale, and the argument that takes it.
KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "embedded": (flux, EMBEDDED, "guidance_scale"),
    "true_cfg": (lambda: flux(guidance_embeds=False, seed=5), TRUE_CFG, "true_cfg_scale"),
}
SCALES = [5, 3.0, 8.0]
OPTIONS: dict[str, Any] = {"compute_steps": 5, "effort": "fast", "show_progress": False}


def at(call: dict[str, Any], argument: str, scale: float) -> dict[str, Any]:
    """The call at one scale."""
    return {**call, argument: scale}


def untimed(profile: Profile) -> Profile:
    """Without what the clock said, and what was measured between scales."""
    held = {name: value for name, value in profile.provenance.heldout.items() if name != "between"}
    return replace(profile, others=(), provenance=replace(profile.provenance, measured={}, heldout=held))


def runs(profile: Profile) -> float:
    return profile.provenance.measured["uncached_runs"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def profile(kind: str) -> Profile:
    make, call, _ = KINDS[kind]
    return calibrate(make(), PROMPTS, guidance_scales=SCALES, **OPTIONS, **call)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_scale_is_fitted_and_judged_as_if_it_were_the_only_one(kind: str, profile: Profile) -> None:
    make, call, argument = KINDS[kind]
    for own, scale in zip((profile, *profile.others), (3.0, 5.0, 8.0), strict=True):
        alone = calibrate(make(), PROMPTS, **OPTIONS, **at(call, argument, scale))
        assert untimed(own) == untimed(alone)
        judging = runs(own) - runs(alone)
        assert judging == pytest.approx(0 if scale == 8.0 else 1 + 2 * 5 / 10)  # one judged prompt


def test_a_run_at_a_fitted_scale_is_that_of_its_own_profile_bit_for_bit(kind: str, profile: Profile) -> None:
    make, call, argument = KINDS[kind]
    for own, scale in zip((profile, *profile.others), (3.0, 5.0, 8.0), strict=True):
        finals = []
        for used in (replace(own, others=()), profile):
            pipe = make()
            with apply(pipe, used) as stats:
                finals.append(latents(pipe, **at(call, argument, scale)))
            assert set(stats.predicted.values()) == {5}
        assert torch.equal(*finals)


def test_between_two_scales_the_coefficients_lie_between(kind: str, profile: Profile) -> None:
    make, call, argument = KINDS[kind]
    own, above = (replace(one, others=()) for one in (profile, profile.others[0]))
    finals = []
    for used in (between(own, above, 0.25), profile):
        pipe = make()
        with apply(pipe, used):
            finals.append(latents(pipe, **at(call, argument, 3.5)))
    assert torch.equal(*finals)
    pipe = make()
    with apply(pipe, profile), pytest.raises(ProfileMismatch, match="calibrated at 3 to 8, this call runs at 9"):
        latents(pipe, **at(call, argument, 9.0))


def test_what_is_lost_between_is_measured_on_the_judged_prompts(kind: str, profile: Profile) -> None:
    make, call, argument = KINDS[kind]
    for own, scale in zip((profile, profile.others[0]), (4.0, 6.5), strict=True):
        (found,) = own.provenance.heldout["between"]
        pictures = []
        for used in (None, profile):
            pipe, generator = make(), torch.Generator("cpu").manual_seed(3)  # the fourth prompt is judged
            given = {**call, argument: scale, "generator": [generator], "output_type": "pt"}
            given |= {name: [given[name]] for name in given if name == "negative_prompt"}
            if used is None:
                pictures.append(pipe([PROMPTS[3]], **given)[0].float())
                continue
            with apply(pipe, used):
                pictures.append(pipe([PROMPTS[3]], **given)[0].float())
        metrics = PairedMetrics()
        metrics.update(pictures[1], pictures[0])
        assert found["psnr"] == figures(metrics.state()["psnr"]) and found["scale"] == scale
        assert found["K"] == 5 and found["prompts"] == 1 and found["fewer_steps"]["steps"] == 5
        assert found["gain"]["mean"] == found["psnr"]["mean"] - found["fewer_steps"]["psnr"]["mean"]
    assert "between" not in profile.others[1].provenance.heldout


def test_the_summary_shows_it(profile: Profile) -> None:
    head, _, *rows = profile.summary().splitlines()[:7]
    assert head == "3 plans in this file:"
    cells = [re.split(r"\s{2,}", row.strip()) for row in rows]
    assert [row[1] for row in cells] == ["3", "4, between", "5", "6.5, between", "8"]
    (found,) = profile.provenance.heldout["between"]
    assert cells[1][:4] == ["32×32", "4, between", "5 of 10", f"{found['psnr']['mean']:.1f}"]
    assert Profile.from_bytes(profile.to_bytes()) == profile


# -- several budgets and sizes, costs, checkpoints ----------------------------------------------------------


def dummy(pipe: Any = None, **options: Any) -> Any:
    given = {"num_inference_steps": 12, "show_progress": False, "compute_steps": 6, **options}
    return calibrate(pipe or mixture_pipeline(), dummy_pipeline.PROMPTS, guidance_scales=[2, 4], **given)


def test_the_plan_is_the_one_of_the_middle_scale_for_each_budget() -> None:
    both = dummy(compute_steps=[6, 4])
    options: dict[str, Any] = {"num_inference_steps": 12, "show_progress": False, "guidance_scale": 4.0}
    for own, K in zip(both, (6, 4), strict=True):
        (upper,) = own.others
        alone = calibrate(mixture_pipeline(), dummy_pipeline.PROMPTS, compute_steps=K, **options)
        assert own.schedule == upper.schedule == alone.schedule
        assert untimed(upper) == untimed(alone) and own.predictor.sources == alone.predictor.sources
        assert "chosen_on" in upper.provenance.heldout and "chosen_on" not in own.provenance.heldout


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_it_costs_what_was_announced(effort: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        profile = dummy(effort=effort)
    said = re.search(r"pipeline calls, the work of ([\d.]+)", "\n".join(caplog.messages))
    assert said is not None
    assert sum(map(runs, (profile, *profile.others))) == pytest.approx(float(said[1]), abs=0.051)


def test_sizes_and_scales_are_each_with_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(32, 32), (64, 64)]
    call = {name: value for name, value in EMBEDDED.items() if name not in ("height", "width")}
    monkeypatch.setattr(outcome, "warning", lambda profile: "words")
    with pytest.warns(UserWarning, match="words") as said:
        profile = calibrate(
            flux(), PROMPTS, sizes=sizes, guidance_scales=[3, 5], checkpoint=tmp_path / "c", **OPTIONS, **call
        )
    assert [str(one.message) for one in said] == [
        f"size {size}, guidance_scale {scale}: words" for size in ("32×32", "64×64") for scale in (3, 5)
    ]
    found = [(own.provenance.call["height"], own.provenance.embedded_guidance) for own in (profile, *profile.others)]
    assert found == [(32, 3.0), (64, 3.0), (32, 5.0), (64, 5.0)]
    assert [[b["scale"] for b in own.provenance.heldout.get("between", [])] for own in (profile, *profile.others)] == [
        [4.0], [4.0], [], []
    ]  # fmt: skip
    assert "2 time grids, 2 guidance scales" in repr(profile)


def test_it_continues_from_its_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    whole = dummy(checkpoint=folder)
    names = [one.name for one in sorted(folder.iterdir()) if not one.name.startswith(".")]
    assert names == ["guidance 2.0", "guidance 3.0", "guidance 4.0"]
    pipe = mixture_pipeline()
    assert dummy(pipe, checkpoint=folder) == whole and pipe.calls == 0


# -- refusals ------------------------------------------------------------------------------------------------


def test_the_middle_of_an_even_number_is_the_upper_one() -> None:
    assert GuidanceScales("guidance_scale", (2.0, 4.0)).middle == 4.0
    assert GuidanceScales("guidance_scale", (2.0, 4.0, 8.0)).middle == 4.0
    assert GuidanceScales("guidance_scale", (2.0, 4.0, 8.0)).between == (3.0, 6.0)


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any], str]] = {
    "no list": (flux, EMBEDDED, {"guidance_scales": 5}, r"guidance_scales is 5; give a list of numbers, such as"),
    "a text": (flux, EMBEDDED, {"guidance_scales": "3,5"}, r"guidance_scales is '3,5'; give a list"),
    "one": (flux, EMBEDDED, {"guidance_scales": [5]}, r"guidance_scales has 1 entries; give 2 to 16, or leave it out"),
    "too many": (flux, EMBEDDED, {"guidance_scales": list(range(2, 19))},
                 r"guidance_scales has 17 entries; give 2 to 16, or"),
    "too many at two sizes": (
        flux, {name: v for name, v in EMBEDDED.items() if name not in ("height", "width")},
        {"guidance_scales": list(range(2, 11)), "sizes": [(32, 32), (64, 64)]},
        r"guidance_scales has 9 entries; give 2 to 8 at 2 sizes, of which one file holds 16 profiles, or leave it out",
    ),
    "zero": (flux, EMBEDDED, {"guidance_scales": [0, 5]}, r"guidance_scales is 0; give positive numbers"),
    "negative": (flux, EMBEDDED, {"guidance_scales": [5, -3]}, r"guidance_scales is -3; give positive"),
    "not finite": (flux, EMBEDDED, {"guidance_scales": [5, float("nan")]}, r"guidance_scales is nan; give positive"),
    "no number": (flux, EMBEDDED, {"guidance_scales": [5, "7"]}, r"guidance_scales is '7'; give positive"),
    "the same": (flux, EMBEDDED, {"guidance_scales": [5, 7, 5.0]}, r"guidance_scales has 5 and 5, which are one guid"),
    "nearly the same": (flux, EMBEDDED, {"guidance_scales": [5, 5.04]}, r"has 5 and 5.04, which are one guidance to a"),
    "given too": (flux, CALL, {"guidance_scales": [3, 5]}, r"'guidance_scale' is given in guidance_scales and for all"),
    "true_cfg given too": (flux, CFG_CALL, {"guidance_scales": [3, 5]}, r"'true_cfg_scale' is given in guidance"),
    "no branches": (
        lambda: flux(guidance_embeds=False), EMBEDDED, {"guidance_scales": [3, 5]},
        r"two branches in a step or by a weight that the denoiser is given; at guidance_scale=3 this .* has neither",
    ),
    "guidance off at one": (
        lambda: flux(guidance_embeds=False), TRUE_CFG, {"guidance_scales": [1, 5]},
        r"at true_cfg_scale=1 this pipeline has neither",
    ),
    "other calls": (
        flux, TRUE_CFG, {"guidance_scales": [0.9, 5]},
        r"have to leave the calls of a step as they are, and true_cfg_scale makes them \w+ or \w+, \w+; leave out",
    ),
    "own grids": (
        flux, EMBEDDED, {"guidance_scales": [3, 5], "method": "ertacache", "effort": None},
        r"guidance_scales need one time grid for all of them; use timesteps='none' with them",
    ),
    "own grids of a Method": (
        flux, EMBEDDED,
        {"guidance_scales": [3, 5], "effort": None, "compute_steps": None,
         "method": Method("residual", "output", Schedule.from_mask("#.#.#.#.##"), levels=0, strength=0.5)},
        r"guidance_scales need one time grid",
    ),
    "a rectifier apart": (
        flux, EMBEDDED, {"guidance_scales": [3, 5], "effort": None, "rectifier": "element"},
        r"guidance_scales interpolate coefficients, and this rectifier is kept apart from them; use rectifier='none'",
    ),
    "a literal rectifier": (
        flux, EMBEDDED,
        {"guidance_scales": [3, 5], "effort": None, "rectifier": "channel", "activation": "sigmoid"},
        r"this rectifier is kept apart",
    ),
    "a rectifier at site hidden": (
        flux, EMBEDDED, {"guidance_scales": [3, 5], "effort": None, "rectifier": "scalar", "site": "hidden"},
        r"this rectifier is kept apart",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_before_a_whole_run(case: str) -> None:
    make, call, given, words = REFUSED[case]
    pipe, steps = make(), []
    pipe.transformer.register_forward_hook(lambda *given: steps.append(1))
    with pytest.raises(InvalidArgument, match=words):
        calibrate(pipe, PROMPTS, **{**OPTIONS, **call, **given})
    assert len(steps) <= 8


def test_a_pipeline_without_the_argument_is_refused() -> None:
    class Plain:
        """Takes no guidance."""

        def __init__(self) -> None:
            self.own = mixture_pipeline()
            self.transformer, self.scheduler = self.own.transformer, self.own.scheduler

        def __call__(self, prompt: Any, num_inference_steps: int = 12, generator: Any = ()) -> Any:
            raise AssertionError

    with pytest.raises(InvalidArgument, match="Plain takes no guidance_scale; leave guidance_scales out"):
        calibrate(Plain(), dummy_pipeline.PROMPTS, guidance_scales=[3, 5], speedup=2.0)


def test_a_scale_that_changes_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe: Any = mixture_pipeline()
    guided = pipe._guided
    monkeypatch.setattr(pipe, "_guided", lambda x, t, label, weight: guided(x, t, label, 3.0))
    words = "guidance_scale does not change the guidance of this pipeline; leave guidance_scales out"
    with pytest.raises(InvalidArgument, match=words):
        calibrate(pipe, dummy_pipeline.PROMPTS, guidance_scales=[3, 5], speedup=2.0, show_progress=False)
