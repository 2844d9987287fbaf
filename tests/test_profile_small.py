"""The file of a profile with a small model, and what is refused there."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import ertacache
from assisted import ALL, CALL, FEW_PROMPTS, SEED, Plan, drawn, method
from dummy_pipeline import PROMPTS, untimed
from ertacache.errors import InvalidArgument, ProfileMismatch
from ertacache.profile.profile import Profile
from profile_maker import parts_of

pytestmark = FEW_PROMPTS


def test_it_comes_back_from_its_file(assisted_plan: Plan, tmp_path: Any) -> None:
    pipe, small, profile = assisted_plan
    back = Profile.load(profile.save(tmp_path / "profile.safetensors"))
    assert back == profile and back.provenance == profile.provenance and parts_of(profile.to_bytes())[1]["version"] == 7
    assert back.small_steps == ALL and back.provenance.method["small"] == list(ALL)
    with ertacache.apply(pipe, profile, predictor=small):
        expected = drawn(pipe)
    with ertacache.apply(pipe, back, predictor=small):
        assert torch.equal(drawn(pipe), expected)


def test_a_profile_without_one_is_of_the_version_that_it_was(assisted_plan: Plan) -> None:
    pipe, small, _ = assisted_plan
    options: dict[str, Any] = {"method": method(()), "seed": SEED, "show_progress": False}
    plain = ertacache.calibrate(pipe, PROMPTS, **options, **CALL)
    assert parts_of(plain.to_bytes())[1]["version"] == 5 and "small" not in plain.provenance.method
    assert untimed(ertacache.calibrate(pipe, PROMPTS, **options, predictor=None, **CALL)) == untimed(plain)
    with pytest.raises(ProfileMismatch, match="predictor: the profile predicts from no small model, and one is given"):
        with ertacache.apply(pipe, plain, predictor=small):
            pass


def small_model(profile: Profile, **changes: Any) -> dict[str, Any]:
    return {"provenance": replace(profile.provenance, small_model={**profile.provenance.small_model, **changes})}


def levels(profile: Profile) -> dict[str, Any]:
    a = profile.predictor.a.clone()
    a[4, 0, profile.predictor.sources.index("small"), 1] = 1.0
    return {"predictor": replace(profile.predictor, a=a)}


HOSTILE: dict[str, tuple[Callable[[Profile], dict[str, Any]], str]] = {
    "nobody": (
        lambda p: {"provenance": replace(p.provenance, small_model={})},
        r"sources are \['guided', 'direction', 'small'\] and provenance.small_model is {}; have 'small' among the",
    ),
    "no source": (
        lambda p: {"predictor": replace(p.predictor, sources=("guided", "direction", "cond"))},
        r"sources are \['guided', 'direction', 'cond'\] and provenance.small_model is {.*}; have 'small' among",
    ),
    "key unknown": (lambda p: small_model(p, hook=1), "provenance.small_model is .*; give model_class"),
    "share": (lambda p: small_model(p, share=0.0), r"give model_class \(a text\), .* share \(a number above 0\)"),
    "share true": (lambda p: small_model(p, share=True), "give model_class"),
    "config": (lambda p: small_model(p, model_config=[]), "give model_class"),
    "config of two": (lambda p: small_model(p, model_class="A, B"), "give model_class"),
    "weights": (lambda p: small_model(p, weights="?"), r"provenance.small_model.weights is '\?'; it must be 16"),
    "level": (levels, "predictor.a reads a small model further back than level 0; it has one output, at the pred"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_small_model_that_does_not_fit_is_refused(case: str, assisted_plan: Plan) -> None:
    (change, message), profile = HOSTILE[case], assisted_plan[2]
    with pytest.raises(InvalidArgument, match=message):
        replace(profile, **change(profile))


def test_a_small_model_without_a_coefficient_is_refused(assisted_plan: Plan) -> None:
    profile = assisted_plan[2]
    a = profile.predictor.a.clone()
    a[:, :, profile.predictor.sources.index("small")] = 0
    with pytest.raises(InvalidArgument, match="has no coefficient of a small model; it has one output"):
        replace(profile, predictor=replace(profile.predictor, a=a))


def test_a_call_named_like_the_source_is_refused(assisted_plan: Plan) -> None:
    facts = replace(assisted_plan[2].provenance, contexts=("small", "uncond"), calls=())
    with pytest.raises(InvalidArgument, match=r"provenance\.contexts has a call 'small', which is also the name of"):
        replace(assisted_plan[2], provenance=facts)
