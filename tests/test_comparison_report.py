import re
from pathlib import Path

import pytest

from comparison_folder import FakeComparison, make_entrant, small, with_pictures
from ertacache.evaluation.report.comparison import write_comparison_report
from ertacache.evaluation.report.comparison_plots import Point, pareto
from ertacache.evaluation.report.comparison_tables import percent
from report_page import Page, words

HOSTILE = "</script><script>alert(1)</script> \"'><img src=x onerror=alert(2)> \u2028 & end"


def render(fake: FakeComparison, folder: Path) -> str:
    return write_comparison_report(fake.write(folder)).read_text(encoding="utf-8")


def rows(html: str) -> dict[str, str]:
    """The lines of the table of results: name -> text; where a name comes twice, the last."""
    table = html[html.index("figures sortable") : html.index("What each method is")]
    found = re.findall(r'<tr[^>]*>\s*<th scope="row"(?: data-value="([^"]*)")?>(.*?)</tr>', table, re.DOTALL)
    return {name or words(body.split("</th>")[0]): words(body) for name, body in found}


@pytest.fixture
def html(tmp_path: Path) -> str:
    fake = small()
    tables = {"truth": [[0.3, 0.2, 0.1], [0.5, 0.2, 0.1]], "predicted": [[0.2] * 3, [0.4] * 3], "distances": []}
    fake.l1 = {"contexts": {"cond": tables}}
    folder = with_pictures(fake, tmp_path)
    out = write_comparison_report(folder, tmp_path / "deep" / "page.html")
    assert out == tmp_path / "deep" / "page.html"
    return out.read_text(encoding="utf-8")


def test_the_file_refers_to_nothing_outside_itself(html: str, tmp_path: Path) -> None:
    assert "http://" not in html and "https://" not in html
    page = Page(html)
    for _, attributes in page.tags:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    assert not page.all("link") and "url(" not in html and "@import" not in html
    assert "default-src 'none'; img-src data:; style-src" in html
    anchors = [a["href"] for a in page.all("a")]
    assert anchors == ["#best", "#results", "#plots", "#schedules", "#errors", "#changes", "#sheets"]
    assert {f"#{a['id']}" for a in page.all("h2")} == {*anchors, "#zoom-title"}
    assert write_comparison_report(tmp_path) == tmp_path / "report.html"


def test_provenance_says_what_was_measured_and_what_was_not(html: str) -> None:
    top = words(html[html.index("<dl>") : html.index("</dl>")])
    assert top == (
        "Model tiny-flux Call guidance_scale 7.0 num_inference_steps 4 Seeds 1 for each prompt, from 10000 "
        "Machine two cores Times all rows Versions torch 2.9 Not measured LPIPS no AlexNet weights: pass them "
        "Prompts a red circle a blue square"
    )
    assert "Unfinished" not in html


def test_the_best_is_named_with_its_gains_and_who_loses_to_fewer_steps(html: str) -> None:
    best = html[html.index('id="best"') : html.index('id="results"')]
    line = words(re.findall(r"<tbody>(.*?)</tbody>", best, re.DOTALL)[0])
    # Gains over 29.5 and 31.5; times 4 / 2 and 4 / 1.
    assert line == (
        "4 fitted (ours) 50% of the operations 35.00 ± 1.00 3.00× [2.50–3.50] +5.50 2 of 2 +3.50 2 of 2 50.5%"
    )
    assert words(re.findall("<h1>(.*?)</h1>", html)[0]) == "3.0× faster at 35.0 ± 1.0 dB, 5.5 dB above fewer steps"
    assert "has the highest PSNR of 4 methods at 50% of the operations" in words(html)
    assert "fewer steps (29.50 dB) beats 1 of the 3 methods that cost as much or more TeaCache (27.50)." in words(best)


def test_it_is_said_when_nothing_beats_fewer_steps_and_when_it_beats_nothing(tmp_path: Path) -> None:
    fake = small()
    for row in fake.of("fewer-steps@0.5"):
        row["psnr"] = 60.0
    page = words(render(fake, tmp_path))
    assert "50% of the operations: no method is better than fewer steps (60.00 dB)." in page
    assert "beats 3 of the 3 methods that cost as much or more fitted (ours) (35.00), uniform" in page
    head = "No method beats fewer steps: 2.0× faster at 60.0 ± 0.0 dB; our best, fitted (ours), is 3.0× faster at 35.0"
    assert head in page
    for row in fake.of("fewer-steps@0.5"):
        row["psnr"] = 10.0
    assert "fewer steps (10.00 dB) beats no method that costs as much." in words(render(fake, tmp_path))


def test_a_method_that_costs_less_is_not_said_to_lose_to_fewer_steps(tmp_path: Path) -> None:
    fake = small()
    for row in fake.of("teacache@0.5"):
        row["cost"] = 0.4
    assert "beats no method that costs as much." in words(render(fake, tmp_path))


def test_every_entrant_has_its_line(html: str) -> None:
    lines = rows(html)
    labels = ["fitted (ours)", "uniform, residual reuse", "fewer steps", "TeaCache", "PAB", "TeaCache, very slow"]
    assert list(lines) == [*labels, "no cache"]
    assert lines["TeaCache"] == (
        "3 TeaCache cost 69%, not 50% 27.50 ± 0.50 1.60× [1.60–1.60] 68.8% 62.5%–75.0% 0.6375 ± 0.0025 "
        "-2.75 ± 0.05 2.5 2–3 15.0 12–18 12.5 10–15 1.00 GiB"
    )
    assert lines["fitted (ours)"].startswith("4 fitted (ours) best 35.00 ± 1.00 3.00× [2.50–3.50] 50.5%")
    assert lines["fitted (ours)"].endswith("2.00 GiB")
    assert lines["PAB"] == "PAB cannot run here: its blocks are not known"
    assert lines["no cache"].endswith("100.0% 1.0000 ± 0.0000 equal 4 24 20 1.00 GiB")
    assert lines["TeaCache, very slow"].startswith("3 TeaCache, very slow 39.50 ± 0.50 1.33×")
    heads = re.findall(r'<tr class="head">.*?</tr>', html)
    assert [words(head) for head in heads] == ["50% of the operations", "Settings as published", "For comparison"]


def test_columns_can_be_sorted_and_the_best_figures_are_bold(html: str) -> None:
    heads = [a for a in Page(html).all("th") if "data-sort" in a]
    assert [a["data-sort"] for a in heads] == ["text"] + ["number"] * 9
    top = re.findall(r'<td class="n top" data-value="([^"]*)">([^ <]*)', html)
    assert [text for _, text in top] == ["35.00", "0.6750", "-3.50"]
    assert float(top[0][0]) == 35.0


def test_what_was_not_measured_has_no_column(tmp_path: Path) -> None:
    fake = small()
    for times in fake.timings:
        times["peak_bytes"] = None
    assert "Peak memory" not in render(fake, tmp_path)
    (tmp_path / "timings.jsonl").unlink()
    html = write_comparison_report(tmp_path).read_text(encoding="utf-8")
    assert ">Speed-up</button>" not in html
    assert "There are no times, hence no plot against them." in words(html)
    assert "share of the uncached time" not in html and "share of the uncached operations" in html


def test_an_unfinished_folder_says_so(tmp_path: Path) -> None:
    fake = small()
    fake.rows, fake.timings = fake.rows[:4], fake.timings[:4]
    html = render(fake, tmp_path)
    assert "Unfinished: 4 of 12 rows are there." in words(html)
    assert rows(html)["fitted (ours)"] == "fitted (ours) no rows yet"


def test_hostile_text_is_escaped_everywhere(tmp_path: Path) -> None:
    fake = small()
    fake.header |= {"model": HOSTILE, "machine": HOSTILE, "prompts": [HOSTILE, HOSTILE], "metrics": ["psnr", HOSTILE]}
    fake.header |= {"call": {HOSTILE: HOSTILE}, "versions": {HOSTILE: 1}, "missing_metrics": {HOSTILE: HOSTILE}}
    for row in fake.rows:
        row[HOSTILE] = 1.0
    for key in ("title", "paper", "work", "batch"):
        fake.entrants[5][key] = HOSTILE
    fake.entrants[3]["settings"] = {HOSTILE: HOSTILE}
    fake.entrants[4]["refusal"] = HOSTILE
    fake.entrants.append(make_entrant(HOSTILE, HOSTILE, None, id=f"m:{HOSTILE}"))
    fake.add({**fake.of("fitted@0.5")[0], "entrant": f"m:{HOSTILE}"}, 1.0)
    fake.l1 = {"contexts": {HOSTILE: {"truth": [[1, 1, 1]], "predicted": [[1, 1, 1]]}}}
    page = Page(write_comparison_report(with_pictures(fake, tmp_path)).read_text(encoding="utf-8"))
    assert len(page.all("script")) == 1
    assert not page.all("img", src="x")
    assert not [a for _, a in page.tags if any(key.startswith("on") for key in a)]
    assert any(HOSTILE in piece for piece in page.text)
    assert any(HOSTILE in (a.get("aria-label") or "") for a in page.all("svg"))


def test_a_lone_surrogate_does_not_stop_the_report(tmp_path: Path) -> None:
    fake = small()
    fake.header["prompts"] = ["\ud800", "b"]
    assert "<li>?</li>" in render(fake, tmp_path)


def test_each_metric_has_both_plots_and_a_menu_shows_one(html: str) -> None:
    figures = Page(html).all("figure")
    pairs = [a["data-row"] for a in figures if a["class"] == "pair"]
    assert pairs == ["psnr", "ssim", "latent_error", "fitted@0.5"]
    assert all("hidden" not in a for a in figures)  # without the script, everything shows
    assert [a["value"] for a in Page(html).all("option")] == pairs
    labels = [a["aria-label"] for a in Page(html).all("svg", role="img") if a["class"] == "plot"]
    best = "TeaCache, very slow, as published: cost 81.2%, PSNR, dB 39.50 ± 0.50, 1.33×"
    assert labels[:2] == [f"PSNR, dB against share of the uncached {of}; best: {best}" for of in ("operations", "time")]
    assert "no cache" not in words(html[html.index('class="choice"') : html.index("legend kinds")])


def test_marks_say_whose_a_method_is_without_colour(html: str) -> None:
    plot = html[html.index('data-row="psnr"') : html.index('data-row="ssim"')]
    groups = re.findall(
        r'<g class="(\w+)" data-method="(\d)"><title>.*?</title>.*?<(path|circle) class="([\w ]+)"', plot
    )
    assert set(groups) == {
        ("plain", "1", "path", "mark open"),
        ("plain", "2", "path", "mark open"),
        ("published", "3", "circle", "mark open"),
        ("ours", "4", "path", "mark"),
    }
    assert re.findall(r'class="tag" [^>]*>([^<]*)<', plot)[:5] == ["1", "2", "3", "4", "3*"]


def at(x: float, y: float, method: str = "m") -> Point:
    return Point(1, method, "ours", False, x, y, f"{x} {y}")


def test_the_front_holds_what_nothing_beats() -> None:
    points = [at(0.5, 30.0), at(0.3, 20.0), at(0.5, 25.0), at(0.4, 19.0)]

    def front(svg: str) -> list[str]:
        line = re.findall(r'class="front" points="([^"]*)"', svg)
        marks = re.findall(r"<title>([^<]*)</title>.*?d=\"M([\d.]+) ([\d.]+)l5.5", svg)
        names = {f"{float(x):.1f},{float(y) + 5.5:.1f}": name for name, x, y in marks}
        return [names[place] for place in line[0].split()]

    assert front(pareto(points, ("cost", "PSNR"), higher=True)) == ["0.3 20.0", "0.5 30.0"]
    assert front(pareto([*points, at(0.2, 26.0)], ("cost", "LPIPS"), higher=False)) == [
        "0.2 26.0",
        "0.3 20.0",
        "0.4 19.0",
    ]
    assert "front" not in pareto(points, ("cost", "x"), higher=None)
    fewer = [at(0.5, 30.0, "fewer-steps"), at(0.3, 20.0, "fewer-steps")]
    assert 'class="fewer"' in pareto(fewer, ("cost", "PSNR"), higher=True)
    assert pareto([], ("cost", "PSNR"), higher=True) == ""


def test_tags_do_not_cover_each_other() -> None:
    svg = pareto([at(0.5, 30 + n / 100) for n in range(20)] + [at(0.3, 20.0)], ("cost", "PSNR"), higher=True)
    places = [(float(x), float(y)) for x, y in re.findall(r'class="tag" x="([\d.]+)" y="([\d.]+)"', svg)]
    assert len(places) == 21
    close = [(a, b) for a in places for b in places if a < b and abs(a[0] - b[0]) < 8 and abs(a[1] - b[1]) < 10.9]
    assert close == []


def test_strips_are_filled_by_the_cost_of_each_step(html: str) -> None:
    strips = re.findall(r'<svg class="strip"[^>]*aria-label="([^"]*)">(.*?)</svg>', html)
    drawn = {label: re.findall(r"13v-([\d.]+)", body) for label, body in strips}
    assert drawn == {
        "fewer steps: 2 steps, cost of each: 1, 1; on a time grid of its own": ["12.00"] * 2,
        "uniform, residual reuse: 4 steps, cost of each: 1, 0, 1, 0": ["12.00"] * 2,
        "TeaCache: 4 steps, cost of each: 1, 0.5, 1, 0.25": ["12.00", "6.00", "12.00", "3.00"],
        "fitted (ours): 4 steps, cost of each: 1, 0.02, 0.98, 0.02": ["12.00", "0.24", "11.76", "0.24"],
        "TeaCache, very slow: 4 steps, cost of each: 1, 1, 1, 0.25": ["12.00"] * 3 + ["3.00"],
    }
    frames = [re.findall(r'class="predicted" d="([^"]*)"', body)[0].count("z") for _, body in strips]
    assert frames == [4, 4, 2, 4, 4]  # the highest PSNR first
    assert words(html).count("decides at run time: mean of 2 runs") == 1
    # The grid 1, 0.5, 0 below the uncached one, on an axis from 0.6 to 299.4.
    assert re.findall(r'<line class="moved" x1="([\d.]+)"', strips[2][1]) == ["0.6", "150.0", "299.4"]
    assert len(re.findall('class="base"', strips[2][1])) == 5


def test_errors_and_output_changes_are_drawn(html: str) -> None:
    labels = [a["aria-label"] or "" for a in Page(html).all("svg", role="img")]
    assert "Error decomposition of fitted (ours), 50% of the operations: final deviation 0.2" in labels
    assert labels[-1] == "Relative l1 change of the cond output at steps 1 to 3, 2 prompts"
    # The axis runs from 0 at y 262 to 0.5 at y 34: 0.3 and 0.5 have the mean 0.4, and a band between them.
    assert re.findall(r'<polyline class="truth" points="[\d.]+,([\d.]+)', html)[0] == "79.6"
    band = re.findall(r'<polygon class="band truth" points="([^"]*)"', html)[0].split()
    assert band[0].split(",")[1] == "34.0" and band[-1].split(",")[1] == "125.2"
    assert [kind for kind in ("truth", "guess") if f'<polygon class="band {kind}"' in html] == ["truth", "guess"]


def test_shares_are_short() -> None:
    assert [percent(0.5), percent(1.0), percent(0.4981), percent(0.33)] == ["50%", "100%", "49.8%", "33%"]


def test_settings_are_folded_away_with_the_methods(html: str) -> None:
    methods = words(html[html.index("What each method is") : html.index('id="plots"')])
    assert "50% of the operations: threshold 0.25, ratios [9 values], tuned to 50%" in methods
    assert "Settings as published: threshold 0.1" in methods


def test_one_cost_draws_no_plot_against_it(tmp_path: Path) -> None:
    fake = small()
    del fake.entrants[-1]
    fake.rows = [row for row in fake.rows if "slow" not in row["entrant"]]
    fake.timings = [times for times in fake.timings if "slow" not in times["entrant"]]
    html = render(fake, tmp_path)
    assert "share of the uncached operations" not in html and "share of the uncached time" in html
    assert "All methods have one cost, hence no plot against it." in words(html)
