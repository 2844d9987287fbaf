"""A profile in words: escaped, complete, and unmoved by whatever a file's free dictionaries hold."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ertacache import extras
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument, MissingExtra
from ertacache.profile.foreign import printable
from ertacache.profile.profile import Profile
from ertacache.profile.profile_plot import coefficient_lines
from ertacache.profile.profile_summary import summary_facts
from profile_maker import facts, make

SPREAD = {"mean": 47.8, "std": 3.4, "standard_error": 1.2}
HELD: dict[str, Any] = {
    "psnr": SPREAD,
    "ssim": {"mean": 0.9921, "std": 0.003, "standard_error": 0.001},
    "prompts": 8,
    "K": 3,
    "fewer_steps": {
        "psnr": {**SPREAD, "mean": 38.8}, "ssim": {"mean": 0.97, "std": 0.01, "standard_error": 0.004}, "steps": 3,
    },
    "gain": {"mean": 9.0, "standard_error": 0.8},
    "wins": True,
}  # fmt: skip
MEASURED = {
    "speed_up": 1.97, "uncached_seconds": 6.21, "cached_seconds": 3.15, "uncached_runs": 37.5,
    "calibration_seconds": 233,
}  # fmt: skip


def measured(**changes: Any) -> Profile:
    return make(provenance=facts(**{"heldout": HELD, "measured": MEASURED, **changes}))


def test_the_whole_summary() -> None:
    assert (
        str(measured())
        == measured().summary()
        == (
            "#.#.#  computes 3 of 5 steps\n"
            "model: FluxTransformer2DModel with FlowMatchEulerDiscreteScheduler, calls cond, uncond\n"
            "method: fitted at site guided, from the last 2 computed steps of both branches\n"
            "guidance: 7, 3.5\n"
            "solver: eta 0\n"
            "time grid: adjusted, strength 0.1\n"
            "quality: PSNR 47.8 ± 1.2 dB, SSIM 0.9921 ± 0.0010 on 8 held-out prompts (± standard error)\n"
            "fewer steps: PSNR 38.8 ± 1.2 dB, SSIM 0.9700 ± 0.0040 at 3 steps, the same cost without a profile\n"
            "gain: +9.0 ± 0.8 dB over fewer steps\n"
            "speed: 1.97× faster, 3.15 s for 6.21 s\n"
            "calibration: cost 37.5 uncached runs of one prompt, 233 s"
        )
    )


def test_what_changes_from_step_to_step() -> None:
    calls = [[0, {"uncond": 1, "cond": 2}], [3, {"cond\x1b": 1}]]
    here = measured(calls=calls, step_weights=[7, 7, 1.5, None, None], step_arguments={"eta": 0.25, "churn\n": 2})
    text = here.summary()
    assert "\ncalls: cond × 2, uncond from step 0; cond\\x1b from step 3\n" in text
    assert "\nguidance by step: 1.5 to 7\nsolver: churn\\n 2, eta 0.25\n" in text
    found = json.loads(json.dumps(summary_facts(here)))
    assert (found["calls"], found["step_weights"]) == (calls, [7, 7, 1.5, None, None])
    assert found["settings"]["scheduler"] == {"shift": 3.0} and found["step_arguments"]["eta"] == 0.25
    same = measured(calls=[[0, {"cond": 1, "uncond": 1}]], step_weights=[7] * 5, step_arguments={})
    assert not any(f"\n{label}: " in same.summary() for label in ("calls", "guidance by step", "solver"))


def test_one_line() -> None:
    line = "Profile(FluxTransformer2DModel, 3 of 5 steps, fitted at guided, 47.8 ± 1.2 dB on 8 prompts)"
    assert repr(measured()) == line
    assert repr(measured(heldout={})) == "Profile(FluxTransformer2DModel, 3 of 5 steps, fitted at guided)"
    assert repr(measured(heldout={}, method={})) == "Profile(FluxTransformer2DModel, 3 of 5 steps, at guided)"


def test_older_files_have_the_deviation_of_one_prompt_only() -> None:
    """Over the root of the number of prompts it is the standard error: 2.5 / 2."""
    text = make().summary()
    assert "quality: PSNR 31.4 ± 1.2 dB, SSIM 0.9700 ± 0.0050 on 4 held-out prompts" in text
    assert "fewer steps" not in text and "warning" not in text


def test_a_plan_that_loses_says_so() -> None:
    assert (
        "warning: loses to fewer steps: run the pipeline with fewer"
        in measured(heldout={**HELD, "wins": False}).summary()
    )
    assert "warning" not in measured().summary()


@pytest.mark.parametrize(("prompts", "warned"), [(1, True), (3, True), (4, False)])
def test_few_prompts_are_no_measurement(prompts: int, warned: bool) -> None:
    text = measured(heldout={**HELD, "prompts": prompts}).summary()
    assert ("warning: fewer than 4 held-out prompts: no measurement" in text) is warned
    assert f"on {prompts} held-out prompt{'s' * (prompts > 1)} (" in text
    assert ("47.8 dB" in text) is (prompts == 1)  # one prompt has no spread


def test_facts_are_json_and_complete() -> None:
    found = json.loads(json.dumps(summary_facts(measured())))
    assert (found["K"], found["T"], found["site"]) == (3, 5, "guided")
    assert (found["heldout"], found["measured"]) == (HELD, MEASURED)
    assert found["prompts"] == {"fitted": 12, "heldout": 4, "seed": 0}


STRANGE: list[Any] = [
    {}, {"psnr": None}, {"psnr": "high"}, {"psnr": []}, {"psnr": {}}, {"psnr": {"mean": "40"}},
    {"psnr": {"mean": True}},
    {"psnr": SPREAD, "prompts": "many"}, {"psnr": SPREAD, "prompts": None}, {"psnr": SPREAD, "prompts": -3},
    {"psnr": SPREAD, "ssim": 4}, {"psnr": SPREAD, "fewer_steps": 3}, {"psnr": SPREAD, "fewer_steps": {"psnr": SPREAD}},
    {"psnr": SPREAD, "gain": "\x1b[2J"}, {"psnr": SPREAD, "gain": {"mean": 1}}, {"psnr": SPREAD, "wins": "no"},
    {"psnr": {"mean": 1e308, "std": 1e308}}, {"psnr": {"mean": {"mean": {"mean": 1}}}},
    {"\n\x1b": {"\u202e": ["\ud800"]}},
    {"speed_up": "fast"}, {"speed_up": 2}, {"speed_up": 2, "cached_seconds": 1}, {"uncached_runs": []},
]  # fmt: skip


@pytest.mark.parametrize("strange", STRANGE, ids=range(len(STRANGE)))
@pytest.mark.parametrize("name", ["heldout", "measured", "method"])
def test_any_dictionary_is_survived(name: str, strange: dict[str, Any]) -> None:
    profile = Profile.from_bytes(measured(**{name: strange}).to_bytes())
    for text in (*profile.summary().split("\n"), repr(profile)):
        assert text.isprintable()
    profile._repr_html_().encode()
    json.dumps(summary_facts(profile))


@pytest.mark.parametrize("value", [3, [1], {"a": "\x1b"}, "residual\n", None, 1e300, True])
def test_any_value_of_the_method_is_survived(value: Any) -> None:
    told = dict.fromkeys(("basis", "rectifier", "strength", "threshold", "levels"), value)
    profile = measured(method=told)
    assert all(line.isprintable() for line in profile.summary().split("\n"))
    assert repr(profile).isprintable()
    profile._repr_html_().encode()


FOREIGN = "\x1b[31m\x07\r\n\t\x00\u202e\u2066\u200b\u2028\ud800\x9b<b>&amp;é漢"
ESCAPED = r"\x1b[31m\x07\r\n\t\x00\u202e\u2066\u200b\u2028\ud800\x9b<b>&amp;é漢"


def test_foreign_text_is_escaped() -> None:
    assert printable(FOREIGN) == ESCAPED
    assert printable("x" * 201) == "x" * 200 + "..."
    here = measured(model_class=FOREIGN, scheduler_class=FOREIGN, method={"basis": FOREIGN, "rectifier": FOREIGN})
    text = Profile.from_bytes(here.to_bytes()).summary()
    assert text.count(ESCAPED) == 4 and all(line.isprintable() for line in text.split("\n"))
    assert repr(here).startswith(f"Profile({ESCAPED}, 3 of 5 steps, {ESCAPED} at guided")


# -- in a notebook -------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The tags of a page, its text, and the widths of what it draws."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in ("path", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_shows_schedule_curve_and_figures() -> None:
    html = measured()._repr_html_()
    page = Page(html)
    assert page.open == [] and {"script", "link", "img", "iframe"}.isdisjoint(page.tags)
    for words in ("computes 3 of 5 steps", "PSNR 47.8 ± 1.2 dB", "+9.0 ± 0.8 dB", "guided from cond, 2 back", "1.97×"):
        assert words in page.text
    cells = [len(re.findall("M", path)) for path in re.findall(r'<path d="([^"]*z)"', html)]
    assert cells == [3, 2]
    assert page.tags.count("polyline") == len(coefficient_lines(measured())) == 4
    assert "http" not in html  # it asks for nothing from elsewhere


def test_html_of_foreign_text_is_escaped() -> None:
    contexts = ["<script>", '"onload="']
    reuse = Predictor.plain_reuse(Schedule.from_mask("#.#.#"), contexts)
    here = make("output", predictor=reuse, provenance=facts(contexts=contexts, model_class=FOREIGN))
    page = Page(here._repr_html_())
    assert "script" not in page.tags and page.text.count(ESCAPED) == 2
    assert "<script> from <script>" in page.text


def test_html_of_a_run_without_predicted_steps_has_no_curve() -> None:
    every = Schedule.all_computed(5)
    page = Page(make(schedule=every, predictor=Predictor.plain_reuse(every, ["guided"]))._repr_html_())
    assert "polyline" not in page.tags and "computes 5 of 5 steps" in page.text


def test_of_many_curves_the_largest_are_drawn() -> None:
    contexts = [f"call{n}" for n in range(9)]
    reuse = Predictor.plain_reuse(Schedule.from_mask("#.#.#"), contexts)
    here = facts(contexts=contexts, guidance_weight=None)
    page = Page(make("output", predictor=reuse, provenance=here)._repr_html_())
    assert page.tags.count("polyline") == 6 and "the 6 largest of 9" in page.text


# -- plots ---------------------------------------------------------------------------------------------------


def test_plot_is_a_figure_and_a_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = measured().plot()
    schedule, grid, coefficients = figure.axes
    assert schedule.get_title(loc="left") == "3 of 5 steps computed (dark), site guided"
    assert [line.get_label() for line in grid.lines] == ["solver's grid", "adjusted grid"]
    assert [line.get_label() for line in coefficients.lines[:4]] == [name for name, _ in coefficient_lines(measured())]
    measured().plot(str(tmp_path / "new" / "p.svg"))
    assert (tmp_path / "new" / "p.svg").read_bytes().startswith(b"<?xml")
    with pytest.raises(InvalidArgument, match=r"cannot draw to p.gif; name a .png, .svg or .pdf file"):
        measured().plot("p.gif")


def test_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"needs matplotlib; install it with: pip install 'ertacache\[report\]'"):
        make().plot()
