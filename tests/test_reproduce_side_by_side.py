"""Figures 3 and 4: who is shown, the comparison behind them, and the pictures that are drawn."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pipelines
from ertacache.errors import InvalidArgument
from ertacache.evaluation.comparison.measure import save_sample
from ertacache.evaluation.reproduce import figure3, figure4, side_by_side
from ertacache.evaluation.reproduce.figures import run_figure
from ertacache.evaluation.reproduce.request import Ready, Request
from ertacache.evaluation.reproduce.settings import FLUX, TINY, WAN, Setting
from ertacache.profile.profile import Profile
from reproduced import small_request


def ready(setting: Setting, pipe: Any, by: Any, T: int = 30) -> Ready:
    return Ready(setting, pipe, {"num_inference_steps": T}, ("a",), ("b",), None, by, 0)


def test_methods_of_figure_3_cost_the_same():
    request = Request("figure3", "tiny-flux", Path("out"), site="hidden")
    found = {e.id: e for e in figure3.compared(ready(TINY[0], pipelines.flux(), "steps"), request)}
    assert list(found) == ["fewer-steps", "uniform-reuse", "teacache", "ertacache", "fitted"]
    assert [e.target for e in found.values()] == [None, None, round(1 / 1.86, 4), None, None]
    shares = [found[name].method.share for name in ("fewer-steps", "uniform-reuse", "ertacache", "fitted")]
    assert shares == [16 / 30] * 4
    # Where ours and plain reuse happen is theirs; --site is the paper's method's.
    assert [found[n].method.site for n in ("uniform-reuse", "ertacache", "fitted")] == ["output", "hidden", "guided"]
    by = figure3.compared(ready(FLUX, pipelines.flux(), "threshold"), Request("figure3", "flux.1-dev", Path("out")))
    assert by[2].method.coefficients is not None and by[3].method.threshold == 0.6  # pyright: ignore[reportAttributeAccessIssue]


def test_parts_of_figure_4_are_the_rows_of_table_3():
    found = figure4.compared(
        ready(WAN, pipelines.wan(), "threshold", 50), Request("figure4", "wan2.1-1.3b", Path("out"))
    )
    methods: list[Any] = [entrant.method for entrant in found]
    assert [entrant.id for entrant in found] == list(figure4.PARTS)
    assert [(m.schedule, m.threshold) for m in methods] == [("uniform", None), *[("policy", 0.08)] * 3]
    assert [(m.adjusted, m.rectifier) for m in methods] == [
        (False, None),
        (False, None),
        (True, None),
        (True, "channel"),
    ]
    assert {m.share for m in methods} == {23 / 50} and {m.site for m in methods} == {"output"}


def test_a_figure_of_pictures_is_that_of_its_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    request = small_request(monkeypatch, tmp_path, "figure4", samples=1, num_inference_steps=5)
    document = run_figure(request)
    rows = [json.loads(line) for line in (request.out / "comparison" / "results.jsonl").read_text().splitlines()[1:]]
    assert [m["title"] for m in document["methods"]] == ["no cache", "uniform", "policy", "+ timesteps", "+ rectifier"]
    assert document["measured"] == 2 and len(document["prompts"]) == 1 and not document["refused"]
    for method in document["methods"]:
        own = [row for row in rows if row["entrant"] == method["id"]]
        assert method["psnr"] == (None if method["id"] == "no-cache" else [row["psnr"] for row in own])
        assert method["cost"] == [row["cost"] for row in own]
        assert [sample["file"] for sample in method["samples"]] == [f"comparison/{own[0]['sample']}"]
    plan = Profile.load(str(request.out / "comparison" / "prepared" / "ertacache.safetensors"))
    assert document["methods"][-1]["K"] == plan.schedule.K
    assert document["methods"][-1]["strength"] == plan.provenance.method["strength"]
    assert all(Path(picture).is_file() for picture in document["pictures"])
    (request.out / document["methods"][0]["samples"][0]["file"]).unlink()
    with pytest.raises(InvalidArgument, match=r"sample comparison/samples/no-cache-0-0.webp of no cache is not in"):
        run_figure(request)


def test_first_and_last_frames_are_shown_with_cost_and_psnr(tmp_path: Path):
    clips = torch.rand(2, 1, 5, 3, 16, 24)
    names = [save_sample(clip, tmp_path, f"m{n}", 0, 0) for n, clip in enumerate(clips)]
    methods = [
        {
            "title": title, "cost": cost, "K": K, "strength": strength, "psnr": psnr,
            "samples": [{"file": name, "frames": 5}],
        }
        for title, cost, K, strength, psnr, name in (
            ("no cache", [1.0, 1.0], None, None, None, names[0]),
            ("policy", [0.5, 0.4], 5, 0.3, [31.25, 28.75], names[1]),
        )
    ]  # fmt: skip
    document = {
        "model": "m", "T": 10, "measured": 2, "prompts": ["a cat for 5 $"], "video": True, "methods": methods,
        "refused": {"TeaCache": "its signal is not known"},
    }  # fmt: skip
    axes = side_by_side.draw(document, tmp_path).axes
    pixels = (clips[:, 0] * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2)
    shown = [torch.as_tensor(one.images[0].get_array()) for one in axes]
    for found, wanted in zip(shown, (pixels[0, 0], pixels[1, 0], pixels[0, 4], pixels[1, 4]), strict=True):
        assert torch.equal(found, wanted)
    assert [one.get_ylabel() for one in axes] == ["first frame", "", "last frame", ""]
    assert [one.get_xlabel() for one in axes] == ["", "", "no cache\ncost 1.00", "policy\ncost 0.50, 31.2 dB"]
    assert side_by_side.tell(document)[1:] == [
        "no cache                              1.000",
        "policy                             5  0.450   30.00 ± 1.77  strength 0.3",
        "TeaCache is not shown: its signal is not known",
    ]


def test_figure_3_is_drawn_of_a_small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Three steps are too few for TeaCache's fit: it is left out, and said to be."""
    request = small_request(monkeypatch, tmp_path, "figure3", count=1, num_inference_steps=4)
    document = run_figure(request)
    assert [method["id"] for method in document["methods"]] == [
        "no-cache", "fewer-steps", "uniform-reuse", "ertacache", "fitted",
    ]  # fmt: skip
    assert document["refused"] == {"TeaCache": "num_inference_steps is 4; TeaCache's fit needs at least 6"}
    assert [method["cost"] for method in document["methods"][1:]] == [[0.5]] * 4
