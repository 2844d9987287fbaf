import base64
import io
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from ablation_results import HOSTILE, PROMPTS, default_rows, stat, write
from ertacache.evaluation.report.ablation import write_report
from ertacache.evaluation.sample_files import save_clip_sample
from report_page import Page, words


@pytest.fixture
def html(tmp_path: Path) -> str:
    out = write_report(write(tmp_path), tmp_path / "deep" / "report.html")
    assert out == tmp_path / "deep" / "report.html"
    return out.read_text(encoding="utf-8")


def test_the_file_refers_to_nothing_outside_itself(html: str) -> None:
    assert "http://" not in html and "https://" not in html
    page = Page(html)
    for _, attributes in page.tags:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    assert not page.all("link")
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'; img-src data:;" in html


def test_every_row_group_and_provenance_is_there(html: str) -> None:
    page = Page(html)
    text = page.text
    headings = [a["data-value"] for a in page.all("th", scope="row") if "data-value" in a]
    # The best of each budget, then group by group: budgets from the largest, in each the best first, last no cache.
    best, of_each = (4, 2, 5), (4, 2, 3, 1, 0, 5)
    assert headings == [default_rows()[i]["label"] for i in (*best, *of_each)]
    for expected in ("tiny-flux", "11", "two cores", "0.1.0", "7.0", PROMPTS[1]):
        assert any(expected in piece for piece in text), expected
    parts = ["results", "plot", "schedules", "errors"]
    links = ["best", "g1", *(f"g1-{part}" for part in (*parts, "samples"))]
    links += ["g2", "g2-results", "g2-schedules", "g2-errors"]
    assert [a["href"] for a in page.all("a")] == [f"#{link}" for link in links]
    assert {a["id"] for _, a in page.tags if "id" in a} >= set(links)
    assert "tiny CFG 7" in text and "tiny & other" in text


def test_hostile_text_is_escaped_everywhere(tmp_path: Path) -> None:
    rows = default_rows()
    for key in ("label", "group", "stage", "site", "basis", "id"):
        rows[2][key] = HOSTILE
    rows[2]["calls"] = {HOSTILE: 2}
    page = Page(write_report(write(tmp_path, rows), tmp_path / "r.html").read_text(encoding="utf-8"))
    assert len(page.all("script")) == 1
    assert not page.all("img", src="x")
    assert not [a for _, a in page.tags if any(key.startswith("on") for key in a)]
    assert any(HOSTILE in piece for piece in page.text)
    assert any(HOSTILE in (a.get("aria-label") or "") for a in page.all("svg"))


def test_columns_can_be_sorted(html: str) -> None:
    heads = [a for a in Page(html).all("th") if "data-sort" in a]
    assert len(heads) == 2 * 10  # two groups
    assert {a["aria-sort"] for a in heads} == {"none"}
    assert [a["data-sort"] for a in heads[:10]] == ["text"] + ["number"] * 9
    values = re.findall(r'<td class="n" data-value="([^"]*)">24\.00 <small>± 0\.35</small>', html)  # 0.5 / √2
    assert values == ["24.0"] * 2  # in the table of the best, and among all
    assert '<td class="n" data-value="3072">3.0 KiB</td>' in html


def test_the_best_of_each_budget_is_marked(html: str) -> None:
    marked = re.findall(r'<tr class="best">\s*<th scope="row" data-value="([^"]*)"', html)
    assert marked == ["residual, three", "residual, uniform", "other group"]


def test_the_summary_compares_with_fewer_steps_and_no_cache(html: str) -> None:
    table = words(html[html.index('id="best"') : html.index('id="g1"')])
    assert "residual, uniform tiny CFG 7, 2 of 4 steps 24.00 ± 0.35 2.00× +4.00 0.6200 ± 0.3536 2 of 4" in table
    # Three of four steps come first: nothing is known of fewer steps there.
    assert words(re.findall("<h1>(.*?)</h1>", html)[0]) == "residual, three is best: 1.3× faster at 31.0 ± 0.4 dB"


def test_a_strip_has_one_cell_per_step_and_fills_the_computed_ones(html: str) -> None:
    strips = re.findall(r'<svg class="strip"[^>]*aria-label="([^:]*): [^"]*">(.*?)</svg>', html)
    drawn = {
        label: ["#" if kind == "computed" else "." for kind in re.findall('rect class="(.*?)"', body)]
        for label, body in strips
    }
    assert {label: "".join(cells) for label, cells in drawn.items()} == {
        "fewer &lt;steps&gt;": "##",
        "residual, uniform": "#..#",
        "residual, moved": "#..#",
        "residual, three": "#.##",
        "other group": "##.#",
    }


def test_only_a_grid_of_its_own_is_drawn_with_ticks_at_its_sigmas(html: str) -> None:
    strips = dict(re.findall(r'<svg class="strip"[^>]*aria-label="([^:]*): [^"]*">(.*?)</svg>', html))
    assert {label for label, body in strips.items() if "moved" in body} == {
        "fewer &lt;steps&gt;",
        "residual, moved",
    }
    ticks = re.findall(r'<line class="(base|moved)" x1="([^"]*)"', strips["residual, moved"])
    # The axis runs from 0.6 to 299.4: sigma 0.7 lies at 0.6 + 0.3 * 298.8.
    assert [x for kind, x in ticks if kind == "base"] == ["0.6", "75.3", "150.0", "224.7", "299.4"]
    assert [x for kind, x in ticks if kind == "moved"] == ["0.6", "90.2", "120.1", "179.9", "299.4"]


def test_plots_are_drawn_and_named(html: str) -> None:
    plots = [a["aria-label"] or "" for a in Page(html).all("svg", role="img") if a["class"] == "plot"]
    assert plots[0] == "PSNR against computed steps; highest: residual, three, 31.00 dB at K = 3"
    assert "Error decomposition of residual, moved, K = 2: final deviation 0.12" in plots
    assert len(plots) == 1 + 4  # a plot where there are two budgets, a decomposition for each row that has one
    assert html.count("<title>residual, uniform: K = 2, 24.00 ± 0.35 dB</title>") == 1


def test_samples_and_differences_hold_the_right_pixels(html: str) -> None:
    images = {}
    for attributes in Page(html).all("img"):
        assert (attributes["class"] or "").split()[1:] == ["pixels"] and attributes["src"]
        data = base64.b64decode(attributes["src"].split(",")[1])
        with Image.open(io.BytesIO(data)) as image:
            images[attributes["alt"]] = image.convert("RGB").getpixel((3, 3))
    assert images == {
        "no cache": (100, 100, 100),
        "residual, uniform": (110, 20, 100),
        "Difference from no cache, amplified ×2": (20, 160, 0),  # 2 · |110 - 100|, 2 · 80, 0
    }
    # The first image carries the PSNR of the first prompt, not the mean.
    assert "23.5 dB" in html


def test_large_samples_are_reduced_and_one_group_has_contents_too(tmp_path: Path) -> None:
    results = write(tmp_path, default_rows()[:-1])
    for name in ("none", "uniform"):
        Image.new("RGB", (1024, 640), (9, 9, 9)).save(tmp_path / "s" / f"{name}-0.png")
    page = Page(write_report(results, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert [a["href"] for a in page.all("a")][:2] == ["#best", "#g1"] and not page.all("a", href="#g2")
    source = page.all("img")[0]["src"]
    assert source and page.all("img")[0]["class"] == "shown"
    with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
        assert image.size == (512, 320)


def test_clips_have_frames_flicker_and_their_curves(tmp_path: Path) -> None:
    rows = default_rows()[:4]
    for row in rows:
        row |= {"frame_psnr": [row["psnr"]["mean"] + f for f in (1, 0, -1)], "flicker": stat(0.125)}
    for row, name in ((rows[0], "none"), (rows[2], "uniform")):
        row["samples"] = [f"s/{name}-0.webp"]
    results = write(tmp_path, rows)
    for name, grey in (("none", 0.2), ("uniform", 0.4)):
        frames = torch.full((3, 3, 48, 32), grey) + torch.arange(3).view(3, 1, 1, 1) / 5
        save_clip_sample(frames, tmp_path / "s" / f"{name}-0.webp")
    html = write_report(results, tmp_path / "r.html").read_text(encoding="utf-8")
    images = {a["alt"]: a for a in Page(html).all("img")}
    strips = ["no cache, frames", "residual, uniform, frames", "Difference from no cache, amplified ×4"]
    assert list(images) == [strips[0][:8], strips[0], strips[1][:17], *strips[1:]]
    greys = []
    for name in strips:
        assert images[name]["class"] == ("difference" if "Difference" in name else "shown") + " frames pixels"
        with Image.open(io.BytesIO(base64.b64decode((images[name]["src"] or "").split(",")[1]))) as image:
            assert image.size == (3 * 32 + 2 * 2, 48)
            greys.append([image.convert("RGB").getpixel((34 * n, 9))[0] for n in range(3)])
    assert greys == [[51, 102, 153], [102, 153, 204], [204, 204, 204]]  # 4 · 51
    with Image.open(io.BytesIO(base64.b64decode((images["no cache"]["src"] or "").split(",")[1]))) as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (3, (32, 48), 0)
    assert "<title>residual, uniform: 23.0 to 25.0 dB</title>" in html
    assert '<td class="n" data-value="0.125">0.12500 <small>± 0.35355</small></td>' in html
    assert "PSNR is against the uncached clip" in words(html) and "calls for each clip" in html


def test_pictures_have_nothing_of_clips(html: str) -> None:
    assert "Flicker" not in html and "Quality of each frame" not in html and 'class="clips"' not in html
    assert "sheet clips-apart" not in html and 'class="loop' not in html
