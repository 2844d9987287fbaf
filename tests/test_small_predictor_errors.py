"""What a calibration and a profile refuse of a small model, and in which words."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ertacache
from assisted import CALL, FEW_PROMPTS, Plan, method, other
from dummies import GaussianMixture
from dummy_pipeline import PROMPTS, DummyPipeline, NamedMixtureModule, mixture_pipeline
from ertacache.errors import InvalidArgument, ProfileMismatch, SplitMismatch

pytestmark = FEW_PROMPTS


class Other(NamedMixtureModule):
    """Of another class."""


class Failing(NamedMixtureModule):
    def forward(self, *_: Any, **__: Any) -> tuple[Tensor]:
        raise RuntimeError("mat1 and mat2 must have the same dtype")


class Longer(NamedMixtureModule):
    def forward(self, *args: Any, **given: Any) -> tuple[Tensor]:
        return (torch.cat([super().forward(*args, **given)[0]] * 2, 1),)


def configured(**config: Any) -> NamedMixtureModule:
    small = other()
    small.config = {**small.config, **config}
    return small


APPLIED: dict[str, tuple[Callable[[DummyPipeline], Any], type[Exception], str]] = {
    "none": (
        lambda _: None, ProfileMismatch,
        "predictor: the profile predicts from a small NamedMixtureModule, and none is given; apply it with predictor=",
    ),
    "no model": (lambda _: "nano-flux", InvalidArgument, "predictor is 'nano-flux'; give a pipeline around a small"),
    "the large one": (
        lambda pipe: pipe.transformer, InvalidArgument, "predictor is the very NamedMixtureModule that the pipeline ru",
    ),
    "its pipeline": (lambda pipe: copy.copy(pipe), InvalidArgument, "predictor is the very NamedMixtureModule"),
    "class": (
        lambda _: Other(GaussianMixture(seed=0)), ProfileMismatch,
        "predictor class: the profile has 'NamedMixtureModule', this pipeline 'Other'.*; give the small model of the",
    ),
    "config": (
        lambda _: configured(dim=99), ProfileMismatch,
        "predictor config: dim is 16 in the profile and 99 here .*; give the small model of the calibration",
    ),
    "weights": (
        lambda _: other(shift=0.2), ProfileMismatch,
        r"predictor: these are other weights of NamedMixtureModule than the profile was fitted with: 1 of 1 tensors",
    ),
    "latents": (
        lambda pipe: configured(in_channels=4), SplitMismatch,
        "predictor: denoiser.in_channels: the large one has 3, the other one 4; models of one run share latents",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", APPLIED)
def test_a_profile_is_tied_to_its_small_model(case: str, assisted_plan: Plan) -> None:
    given, error, message = APPLIED[case]
    pipe, _, profile = assisted_plan
    if case == "latents":
        pipe = copy.copy(pipe)
        pipe.transformer = copy.deepcopy(pipe.transformer)
        pipe.transformer.config = {**pipe.transformer.config, "in_channels": 3}
        profile = replace(profile, provenance=replace(profile.provenance, model_config=pipe.transformer.config))
    with pytest.raises(error, match=message), ertacache.apply(pipe, profile, predictor=given(pipe)):
        pass
    assert not hasattr(vars(pipe.transformer).get("forward"), "_ertacache_overrides")


def test_no_predictor_without_a_profile(assisted_plan: Plan) -> None:
    pipe, small, _ = assisted_plan
    with pytest.raises(InvalidArgument, match="predictor serves a profile that was calibrated with it; give that, and"):
        ertacache.enable(pipe, speedup=2.0, predictor=small)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "target": ({"target_psnr": 30.0}, InvalidArgument, "predictor takes part in the search at a number of steps"),
    "time": ({"max_seconds": 1.0}, InvalidArgument, "predictor takes part in the search at a number of steps"),
    "expert": ({"compute_steps": 5, "history": 2}, InvalidArgument, "predictor takes part in the search"),
    "method": ({"compute_steps": 5, "method": method(())}, InvalidArgument, "the method has a schedule, which"),
    "no step": ({"method": method(())}, InvalidArgument, r"or a Method that names|Method\(..., small=\(3, 5\)\)"),
    "map": ({"compute_steps": 5, "map": print}, InvalidArgument, "predictor and map do not go together; leave one"),
    "scales": ({"compute_steps": 5, "guidance_scales": [5.0, 7.0]}, InvalidArgument, "predictor and guidance_scales"),
    "computed steps": (
        {"method": method((3, 4))}, InvalidArgument, r"has small=\[3, 4\]; name predicted steps of '#..#.#",
    ),
    "order": ({"method": method((4, 2))}, InvalidArgument, r"has small=\[4, 2\]; name predicted steps of"),
    "aim": ({"method": method(aim="step")}, InvalidArgument, "predictor needs a plan that aims at the trajectory, and"),
    "site": ({"method": method(site="output", directions=0)}, InvalidArgument, "predictor needs a plan that aims at"),
    "fails": (
        {"compute_steps": 5, "predictor": Failing(GaussianMixture(seed=0))}, SplitMismatch,
        r"predictor: Failing cannot answer the pipeline's call of its own denoiser \(mat1 and mat2 must have the same",
    ),
    "shape": (
        {"compute_steps": 5, "predictor": Longer(GaussianMixture(seed=0))}, SplitMismatch,
        r"predictor: the small model returns \[1, 8, 4\] where the pipeline's denoiser returns",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_calibration_refuses(case: str) -> None:
    options, error, message = REFUSED[case]
    pipe = mixture_pipeline()
    given: dict[str, Any] = {"predictor": other(), "show_progress": False, **CALL, **options}
    given = {name: value for name, value in given.items() if name + "s" not in given}
    with pytest.raises(error, match=message):
        ertacache.calibrate(pipe, PROMPTS, **given)


def test_a_method_with_a_small_model_needs_one() -> None:
    with pytest.raises(InvalidArgument, match=r"the method has small=\[1, 2, 4.*\]; give the small model: predictor="):
        ertacache.calibrate(mixture_pipeline(), PROMPTS, method=method(), show_progress=False, **CALL)
