"""Figure 2 on a small random pipeline: changes against hooks, distances against plain runs of the kept plans."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ertacache
from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.errors import CalibrationError
from ertacache.evaluation.reproduce import figure2, figure_plan
from ertacache.evaluation.reproduce.figures import run_figure
from ertacache.evaluation.reproduce.paper_figures import full_method
from ertacache.evaluation.reproduce.request import checked
from ertacache.profile.profile import Profile
from pipelines import flux
from reproduced import SMALL_CALL, small_request


def test_changes_and_trajectories_are_those_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    request = small_request(monkeypatch, tmp_path, "figure2", seed=70)
    document = run_figure(request)
    assert sorted(path.name for path in request.out.iterdir()) == [
        "adjusted.safetensors", "cached.safetensors", "changes.json", "figure2.json", "figure2.png", "figure2.svg",
        "setting.json", "trajectories.json",
    ]  # fmt: skip
    pipe, prompts, outputs = flux(), checked(request).prompts, list[torch.Tensor]()
    handle = pipe.transformer.register_forward_hook(lambda *call: outputs.append(call[-1][0]))
    seeded = [Prompts((prompt,), 70 + n) for n, prompt in enumerate(prompts)]
    latents = [call_pipeline(pipe, one, SMALL_CALL, decode=False) for one in seeded]
    handle.remove()
    context = document["contexts"]["cond"]
    for n in range(2):
        changes = [
            float((b - a).abs().sum() / a.abs().sum()) for a, b in itertools.pairwise(outputs[6 * n : 6 * n + 6])
        ]
        np.testing.assert_allclose(context["truth"][n], changes, rtol=1e-5)
    predicted = np.polyval(document["coefficients"], context["distances"])
    np.testing.assert_allclose(context["predicted"], predicted, rtol=1e-9)
    assert document["published"] is False and document["K"] == document["schedule"].count("#")
    assert document["strength"] > 0 and document["refused"] is None
    for name in ("cached", "adjusted"):
        with ertacache.apply(pipe, Profile.load(str(request.out / f"{name}.safetensors"))):
            ends = [call_pipeline(pipe, one, SMALL_CALL, decode=False) for one in seeded]
        for plane, end, true in zip(document["planes"], ends, latents, strict=True):
            assert plane["distance"][name][-1] == pytest.approx(float((end - true).norm() / true.norm()), rel=1e-5)
            assert plane["distance"][name][0] == 0 and len(plane["curves"][name]) == 7

    # A part that is there is not measured again.
    for name in ("figure2.json", "trajectories.json"):
        (request.out / name).unlink()
    monkeypatch.setattr(figure2, "record_changes", lambda *given: pytest.fail("recorded again"))
    monkeypatch.setattr(figure2, "adjusted_plan", lambda *given: pytest.fail("calibrated again"))
    assert run_figure(request) == document


def test_the_picture_has_a_panel_for_each_call_and_prompt(tmp_path: Path):
    curve = [[0.0, 0.0], [1.0, 2.0]]
    plane = {
        "prompt": "a $ sign",
        "shares": [0.75, 0.25],
        "curves": {"uncached": curve, "cached": curve},
        "distance": {"cached": [0.0, 0.5]},
    }
    context = {"truth": [[0.1, 0.2], [0.3, 0.4]], "predicted": [[0.2, 0.2], [0.2, 0.2]]}
    document = {
        "model": "m", "T": 3, "K": 2, "published": True, "contexts": {"cond": context, "uncond": context},
        "strength": None, "refused": "the time grid of X cannot be changed", "planes": [plane] * 3,
    }  # fmt: skip
    axes = figure2.draw(document, tmp_path).axes
    titles = [one.get_title(loc="left") for one in axes]
    assert titles[:2] == ["(a) m, call 'cond', 2 prompts", "(a) m, call 'uncond', 2 prompts"]
    assert titles[2:] == [r"(b) a \$ sign"] * 3 and axes[2].get_xlabel() == "first component, 75.0% of the variance"
    mean = next(line for line in axes[0].lines if line.get_label() == "true")
    assert mean.get_xdata().tolist() == [1, 2] and mean.get_ydata() == pytest.approx([0.2, 0.3])
    assert figure2.tell(document) == [
        "(a) TeaCache's polynomial, published; relative l1 per step, mean over prompts and steps",
        "    cond: true 0.2500, predicted 0.2000, apart 0.1000",
        "    uncond: true 0.2500, predicted 0.2000, apart 0.1000",
        "(b) 2 of 3 steps computed; relative distance from the uncached end",
        *["    cached 0.5000: a $ sign"] * 3,
        "the adjusted grid is not shown: the time grid of X cannot be changed",
    ]


def test_a_policy_that_predicts_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(figure_plan, "full_method", lambda model: replace(full_method(model), threshold=1e-9))
    request = small_request(monkeypatch, tmp_path, "figure6", by="threshold")
    with pytest.raises(
        CalibrationError, match=r"policy of λ = 1e-09 predicts no step here; use --by steps, or more st"
    ):
        run_figure(request)


def test_few_steps_leave_nothing_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    request = small_request(monkeypatch, tmp_path, "figure2", num_inference_steps=5)
    with pytest.raises(CalibrationError, match="num_inference_steps is 5; TeaCache's fit needs at least 6"):
        run_figure(request)
