"""The judged figures of a profile on all its faces: text, notebook, picture and facts."""

import json
import math
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ertacache.cli.app import app
from ertacache.core.predictor import Predictor
from ertacache.metrics import figures, paired_gain
from ertacache.profile.profile import Profile
from ertacache.profile.profile_figures import percent
from ertacache.profile.profile_summary import summary_facts, summary_rows
from profile_maker import facts, make
from test_profile_summary import Page

OURS, FEWER = [40.0, 38.5, 31.0, 42.5], [31.0, 30.5, 24.0, 33.5]


def of(values: list[float]) -> dict[str, Any]:
    return {"psnr": figures(values), "ssim": figures([value / 50 for value in values])}


CANDIDATES: list[Any] = [
    {"name": "uniform, residual reuse", "K": 3, "psnr": {"mean": 33.25, "standard_error": 1.5},
     "latent_log10_error": -2.414, "chosen": False},
    {"name": "density 1.3", "K": 3, "psnr": {"mean": 40.5, "standard_error": 1.25}, "latent_log10_error": -3.171,
     "chosen": True},
    {"name": "density 1.8", "K": 3, "psnr": {"mean": None, "standard_error": None}, "latent_log10_error": None,
     "chosen": False},
]  # fmt: skip
HELD: dict[str, Any] = {
    "prompts": 4,
    "K": 3,
    **of(OURS),
    "latent_log10_error": -3.05,
    "fewer_steps": {**of(FEWER), "steps": 3},
    "reuse": of([33.0, 33.5, 26.0, 35.5]),
    **paired_gain(OURS, FEWER),
    "chosen_on": {"prompts": 5, "candidates": CANDIDATES},
}
SPLIT = {"basis": "fitted", "history": 2, "prompts": {"fitted": 12, "chosen_on": 5, "judged": 4}}


def judged(held: dict[str, Any] | None = None, **changes: Any) -> Profile:
    known = {"heldout": HELD if held is None else held, "measured": {}, "method": SPLIT}
    return make(provenance=facts(**{**known, **changes}))


def test_the_whole_text() -> None:
    assert judged().summary().split("\n")[2:] == [
        "method: fitted at site guided, from the last 2 computed steps of both branches",
        "guidance: 7, 3.5",
        "solver: eta 0",
        "time grid: adjusted",
        "prompts: 12 fitted, 5 chosen on, 4 judged",
        "quality: PSNR 38.0 ± 2.5 dB, SSIM 0.7600 ± 0.0495 on 4 judged prompts (± standard error)",
        "gain: +8.2 ± 0.5 dB over fewer steps, over 99.9% confidence that it beats them",
        "judged on 4 prompts, at the cost of 3 of 5 steps:",
        "                    PSNR, dB   10%  worst           SSIM",
        "  this plan       38.0 ± 2.5  33.2   31.0  0.760 ± 0.049",
        "  3 solver steps  29.8 ± 2.0  25.9   24.0  0.595 ± 0.041",
        "  residual reuse  32.0 ± 2.1  28.1   26.0  0.640 ± 0.041",
        "  (± standard error of the mean; a tenth of the prompts lies below the value at 10%)",
        "chosen between 3 plans on 5 other prompts:",
        "  plan                     steps    PSNR, dB  log10 error",
        "  uniform, residual reuse      3  33.2 ± 1.5        -2.41",
        "  density 1.3 (chosen)         3  40.5 ± 1.2        -3.17",
        "  density 1.8                  3           –     diverged",
        "  (the best of several looks better than it is: these figures flatter the chosen plan)",
    ]


def test_older_files_have_no_tables() -> None:
    older = {key: HELD[key] for key in ("prompts", "K", "gain", "wins")}
    older |= {name: {"mean": 38.0, "std": 5.0, "standard_error": 2.5} for name in ("psnr", "ssim")}
    older["fewer_steps"] = {"psnr": older["psnr"], "ssim": older["ssim"], "steps": 3}
    here = judged(older, method={"basis": "fitted"})
    assert [label for label, _ in summary_rows(here, here)][-3:] == ["quality", "fewer steps", "gain"]
    assert "judged" not in here.summary() and "confidence" not in here.summary() and "(" in here.summary()
    assert "table" not in Page(here._repr_html_()).tags


@pytest.mark.parametrize(
    ("confidence", "warned"), [(0.5, True), (0.9499, True), (0.95, False), (1.0, False), (None, False), (1.5, False)]
)
def test_a_gain_that_is_not_settled_says_so(confidence: Any, warned: bool) -> None:
    text = judged({**HELD, "confidence": confidence}).summary()
    assert ("warning: not known to beat fewer steps: the confidence is" in text) is warned
    if warned:
        assert f"is {percent(confidence)}, below 95%; judge it on more prompts, or run fewer steps\n" in text


def test_a_loss_is_warned_of_once() -> None:
    text = judged({**HELD, **paired_gain(FEWER, OURS)}).summary()
    assert "gain: -8.2 ± 0.5 dB over fewer steps, under 0.1% confidence that it beats them\n" in text
    assert text.count("warning: ") == 1 and "warning: loses to fewer steps" in text


def test_below_20_db_and_too_few_prompts_are_warned_of_still() -> None:
    text = judged({**HELD, **of([19.0, 20.5]), "prompts": 2}).summary()
    assert "warning: far from the uncached results, below 20 dB" in text
    assert "warning: fewer than 4 judged prompts: no measurement" in text


@pytest.mark.parametrize(
    ("share", "words"),
    [(1.0, "over 99.9%"), (0.999, "99.9%"), (0.975, "97.5%"), (0.5, "50.0%"), (0.001, "0.1%"), (0.0, "under 0.1%")],
)
def test_no_confidence_is_certain(share: float, words: str) -> None:
    assert percent(share) == words


def test_one_prompt_has_no_spread_and_equal_pictures_no_bound() -> None:
    one = {**HELD, **of([35.0]), "prompts": 1, "fewer_steps": {"psnr": figures([math.inf])}, "reuse": {}}
    lines = judged(one).summary().split("\n")
    assert "judged on 1 prompt, at the cost of 3 of 5 steps:" in lines
    table = lines[lines.index("judged on 1 prompt, at the cost of 3 of 5 steps:") + 2 :][:2]
    assert [line.split() for line in table] == [
        ["this", "plan", "35.0", "35.0", "35.0", "0.700"],
        ["fewer", "steps", "∞", "∞", "∞", "–"],
    ]
    assert "∞ dB on 4 prompts" in repr(judged({**HELD, "psnr": figures([math.inf] * 4)}))


def test_the_chosen_one_is_among_those_shown() -> None:
    many = [{**CANDIDATES[0], "name": f"plan {n}", "chosen": n == 40} for n in range(50)]
    text = judged({**HELD, "chosen_on": {"prompts": 5, "candidates": many}}).summary()
    assert "chosen between 50 plans on 5 other prompts:" in text
    assert [line.split("  ")[1] for line in text.split("\n") if line.startswith("  plan ")] == [
        "plan", *(f"plan {n}" for n in range(12)), "plan 40 (chosen)",
    ]  # fmt: skip
    assert "flatter the chosen plan; 13 of 50 are shown)" in text


def test_facts_have_the_split_and_all_figures() -> None:
    found = json.loads(json.dumps(summary_facts(judged())))
    assert found["prompts"] == {"fitted": 12, "heldout": 4, "chosen_on": 5, "judged": 4, "seed": 0}
    assert found["heldout"] == HELD


def test_inspect_prints_both(tmp_path: Any) -> None:
    judged().save(tmp_path / "p.safetensors")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "p.safetensors")])
    assert result.exit_code == 0 and judged().summary() in result.stdout
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "p.safetensors"), "--json"])
    assert json.loads(result.stdout)["heldout"] == HELD


def grids() -> Profile:
    """Two plans in one file, one for each size; the second's gain is not settled."""
    half = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.125, 0.0])
    unsettled = {**HELD, "confidence": 0.81, "gain": {"mean": 0.9, "standard_error": 1.0}}
    second = facts(heldout=unsettled, measured={}, method=SPLIT, call={"height": 48, "width": 96})
    other = make(base_sigmas=half, sigmas=half, provenance=second)
    first = facts(heldout=HELD, measured={}, method=SPLIT, call={"height": 64, "width": 64})
    return make(others=(other,), provenance=first)


def test_several_plans_in_one_file_have_a_line_each() -> None:
    assert grids().summary().split("\n")[:4] == [
        "2 plans in this file:",
        "  size   guidance   steps    PSNR, dB   10%  worst    gain, dB  confidence",
        "  64×64    7, 3.5  3 of 5  38.0 ± 2.5  33.2   31.0  +8.2 ± 0.5  over 99.9%",
        "  48×96    7, 3.5  3 of 5  38.0 ± 2.5  33.2   31.0  +0.9 ± 1.0       81.0%",
    ]
    assert "plans in this file" not in judged().summary()
    plain = facts(heldout={}, measured={}, call={"height": 64, "width": 64})
    assert "plans in this file" not in make(others=(_unjudged(),), provenance=plain).summary()


def _unjudged() -> Profile:
    half = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.125, 0.0])
    return make(base_sigmas=half, sigmas=half, provenance=facts(heldout={}, measured={}))


def test_html_has_the_same_tables() -> None:
    html = grids()._repr_html_()
    page = Page(html)
    assert page.open == [] and page.tags.count("table") == 5 and page.tags.count("section") == 2
    for words in ("2 plans in this file", "judged on 4 prompts", "25.9", "these figures flatter the chosen plan"):
        assert words in page.text
    assert html.count('<tr class="marked"><td>density 1.3 (chosen)</td>') == 2 == html.count('class="marked"')


def test_plot_draws_the_judged_figures() -> None:
    pytest.importorskip("matplotlib")
    axes = judged().plot().axes[3]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["this plan", "3 solver steps", "residual reuse"]
    assert axes.get_title(loc="left") == "+8.2 ± 0.5 dB over fewer steps, over 99.9% confidence"
    assert axes.get_xlabel() == "PSNR in dB on 4 judged prompts"
    drawn = {
        (float(line.get_xdata()[0]), int(line.get_ydata()[0])) for line in axes.lines if len(line.get_xdata()) == 1
    }
    for y, part in enumerate((HELD, HELD["fewer_steps"], HELD["reuse"])):
        assert {(part["psnr"][key], y) for key in ("mean", "p10", "worst")} <= drawn
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        "mean ± SE", "10th percentile", "worst prompt",
    }  # fmt: skip


STRANGE: list[Any] = [
    {"psnr": {"p10": "low"}}, {"psnr": {"mean": 40, "p10": None, "worst": []}}, {"chosen_on": 3},
    {"chosen_on": {"candidates": 4}}, {"chosen_on": {"candidates": [1, None, {"name": "\x1b[2J<b>", "K": "x"}]}},
    {"chosen_on": {"prompts": -2, "candidates": [{"chosen": True, "psnr": 3}] * 2000}}, {"confidence": "sure"},
    {"confidence": -1}, {"reuse": [1]}, {"reuse": {"psnr": {"mean": 30, "standard_error": -2}}},
    {"fewer_steps": {"psnr": {"mean": None}, "steps": "\n"}}, {"gain": {"mean": None, "standard_error": None}},
    {"prompts": 1e300},
]  # fmt: skip


@pytest.mark.parametrize("strange", STRANGE, ids=range(len(STRANGE)))
def test_any_figures_are_survived(strange: dict[str, Any]) -> None:
    here = Profile.from_bytes(judged({**HELD, **strange}).to_bytes())
    assert all(line.isprintable() for line in here.summary().split("\n"))
    assert "<b>" not in here._repr_html_().replace("<b>FluxTransformer2DModel</b>", "")
    json.dumps(summary_facts(here))


@pytest.mark.parametrize("strange", STRANGE, ids=range(len(STRANGE)))
def test_any_figures_are_drawn(strange: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    judged({**HELD, **strange}).plot().draw_without_rendering()


def test_figures_of_the_prompts_that_chose_are_not_called_judged() -> None:
    here = judged(method={**SPLIT, "prompts": {"fitted": 4, "chosen_on": 5, "judged": 0}})
    text = here.summary()
    assert "prompts: 4 fitted, 5 chosen on, 0 judged\n" in text and "on 4 held-out prompts (" in text
    assert "warning: measured on the prompts that chose the plan, which flatters it: calibrate on more prompts" in text
    assert "judged on" not in text and "chosen between 3 plans on 5 prompts:" in text
    assert "warning" not in judged().summary()


@pytest.mark.parametrize("split", [3, {}, {"fitted": 3}, {"fitted": "\n", "chosen_on": 1, "judged": 2}])
def test_half_a_split_is_not_shown(split: Any) -> None:
    here = judged(method={"prompts": split})
    assert "prompts: " not in here.summary() and set(summary_facts(here)["prompts"]) == {"fitted", "heldout", "seed"}


def test_the_guidance_direction_is_named() -> None:
    """Three outputs of the solver's and two directions: not both branches."""
    here = make()
    a = torch.zeros(5, 1, 2, 3)
    a[3, :, 0] = 1
    a[3, :, 1, :2] = 0.5
    nothing = torch.zeros(5, 1)
    # A file with this source is another format than this fixture's: only the words are tested here.
    object.__setattr__(here, "predictor", Predictor(("guided",), ("guided", "direction"), a, nothing, nothing))
    words = "fitted at site guided, from the last 3 computed steps, with the guidance direction of the last 2 computed"
    assert f"method: {words} steps\n" in here.summary()
