"""`ertacache reproduce` of the tables, with a comparison that is written, not run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pipelines
from ertacache.baselines.delta_dit import DeltaDiT
from ertacache.baselines.faster_cache import FasterCache
from ertacache.baselines.teacache import COEFFICIENTS
from ertacache.errors import InvalidArgument
from ertacache.evaluation.reproduce import request
from ertacache.evaluation.reproduce.entrants import entrants
from ertacache.evaluation.reproduce.paper_figures import printed_rows
from ertacache.evaluation.reproduce.request import Ready, Request, load, prepare, read_texts
from ertacache.evaluation.reproduce.run import reproduce, show
from ertacache.evaluation.reproduce.settings import COGVIDEOX, FIGURES, FLUX, TINY, WAN, Setting
from reproduced import SECONDS, write_comparison


class Compared:
    """What the engine was called with."""

    def __init__(self) -> None:
        self.entrants: list[Any] = []
        self.job: Any = None
        self.options: dict[str, Any] = {}

    def __call__(self, pipe: Any, entrants: Any, job: Any, out: Path) -> Path:
        self.pipe, self.entrants, self.job = pipe, list(entrants), job
        return write_comparison(entrants, job, out, **self.options)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Compared:
    compared = Compared()
    monkeypatch.setattr("ertacache.evaluation.comparison.run.run_comparison", compared)
    return compared


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str, bool]]:
    """Every load, answered with a small random pipeline of the family."""
    made: dict[str, Callable[[], Any]] = {
        FLUX.model: pipelines.flux, WAN.model: pipelines.wan, COGVIDEOX.model: pipelines.cogvideox,
    }  # fmt: skip
    calls: list[tuple[str, str, str, bool]] = []

    def answer(setting: Setting, device: str, dtype: str, *, offload: bool) -> Any:
        calls.append((setting.model, device, dtype, offload))
        return made.get(setting.model, pipelines.flux)()

    monkeypatch.setattr(request, "load", answer)
    return calls


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Prompt files of published weights."""
    (tmp_path / "measured.txt").write_text("a cat\na dog\na tree\n")
    (tmp_path / "calibrated.txt").write_text("a house\na car\n")
    return {"prompts": tmp_path / "measured.txt", "calibration_prompts": tmp_path / "calibrated.txt"}


def ready(setting: Setting, pipe: Any, by: Any) -> Ready:
    T = setting.call.get("num_inference_steps", 30)
    return Ready(setting, pipe, {"num_inference_steps": T}, ("a",), ("b",), None, by, 0)


def chosen(table: str, setting: Setting, pipe: Any, by: Any = "threshold", site: Any = "output") -> dict[str, Any]:
    rows = printed_rows(table, setting.tables[table])
    found = entrants(rows, ready(setting, pipe, by), site)
    assert [entrant.id for entrant in found] == [row.id for row in rows if row.id != "no-cache"]
    return {entrant.id: entrant for entrant in found}


def test_ablation_at_the_printed_lambda():
    found = chosen("table3", FLUX, pipelines.flux())
    assert [entrant.target for entrant in found.values()] == [None] * 4
    uniform, policy, timesteps, full = (entrant.method for entrant in found.values())
    assert (uniform.schedule, uniform.share, uniform.threshold) == ("uniform", 16 / 30, None)
    for method in (policy, timesteps, full):
        assert (method.schedule, method.threshold, method.site, method.basis) == ("policy", 0.6, "output", "residual")
    assert [m.adjusted for m in (uniform, policy, timesteps, full)] == [False, False, True, True]
    assert [m.rectifier for m in (uniform, policy, timesteps, full)] == [None, None, None, "channel"]


def test_bundled_models_take_the_papers_share_of_the_steps():
    found = chosen("table2", TINY[0], pipelines.flux(), by="steps")
    full = found["ertacache"].method
    assert (full.threshold, full.share, found["ertacache"].target) == (None, 16 / 30, None)
    teacache = found["teacache"]
    # Coefficients that are published belong to other weights: these are fitted.
    assert (teacache.target, teacache.method.coefficients) == (round(1 / 1.84, 4), None)
    hidden = chosen("table2", TINY[0], pipelines.flux(), by="steps", site="hidden")
    assert hidden["ertacache"].method == replace(full, site="hidden")
    costs = [entrant.target for entrant in chosen("table1", TINY[0], pipelines.flux(), by="steps").values()]
    assert costs == [0.9709, 0.8403, 0.7519, 0.7143, 0.6452, 0.4444, None, None]


def test_others_start_from_published_settings_on_published_weights():
    found = chosen("table1", COGVIDEOX, pipelines.cogvideox())
    assert found["delta-dit-8"].method == DeltaDiT.published()["CogVideoXTransformer3DModel"]["N_c=8, N=2"]
    assert found["fastercache"].method == FasterCache.published()["CogVideoXTransformer3DModel"]["authors"]
    assert [found[name].target for name in ("delta-dit-8", "fastercache", "pab")] == [None] * 3
    assert found["pab"].method.window == (100, 850)
    assert found["teacache"].target == round(1 / 2.92, 4)
    assert found["teacache"].method.coefficients == COEFFICIENTS["CogVideoX-2B"]
    slow = found["ertacache-slow"].method
    assert (slow.adjusted, slow.threshold, slow.rectifier) == (True, 0.08, "channel")
    wan = chosen("table1", WAN, pipelines.wan())
    assert wan["teacache"].method.coefficients == COEFFICIENTS["Wan2.1-T2V-1.3B"]
    assert wan["ertacache"].method.adjusted


def test_a_published_table_holds_differences(
    engine: Compared, loads: list[Any], files: dict[str, Path], tmp_path: Path
):
    engine.options = {"peak_bytes": 27000 * 2**20}
    out = tmp_path / "out"
    request = Request("table2", "flux.1-dev", out, **files, count=2, device="cpu", memory_check=False)
    document = reproduce(request)
    assert loads == [("flux.1-dev", "cpu", "bfloat16", False)]
    job = engine.job
    assert (job.prompts, job.calibration_prompts) == (("a cat", "a dog"), ("a house", "a car"))
    assert (job.seeds, job.seed, job.batch_size, job.call) == (1, 10_000, 1, dict(FLUX.call))
    base, teacache, ours = document["rows"]
    assert (base["here"], base["computed_steps"], base["cost"]) == ({"speedup": 1, "latency": SECONDS + 0.5}, 30, 1)
    assert ours["here"] == pytest.approx({"speedup": 3, "latency": (SECONDS + 0.5) / 3, "psnr": 22.5, "ssim": 0.9})
    assert ours["difference"]["psnr"] == pytest.approx(22.5 - 20.5146)
    assert set(ours["difference"]) == {"speedup", "latency", "psnr", "ssim"}
    assert (ours["computed_steps"], ours["cost"]) == (15, pytest.approx(1 / 3))
    # TeaCache runs a part of the denoiser on every step: there is no K.
    assert teacache["computed_steps"] is None
    assert json.loads((out / "table.json").read_text()) == {k: v for k, v in document.items() if k != "text"}
    page = (out / "table.md").read_text()
    assert "| ERTACache (λ = 0.6) [2] [3] | paper |  |  | 1.86 | 14.01 | 0.9534 | 0.3029 | 0.8962 | 20.51 |" in page
    assert "|  | difference |  |  | +1.14 | -9.84 | – | – | +0.0038 | +1.99 |" in page
    assert "2. not a text-image score" in page and "LPIPS is not measured: no AlexNet weights" in page
    assert "CLIP is not measured: no CLIP" in page and "captions of MS COCO 2014" in page
    assert "not comparable" not in page and "Unfinished" not in page


def test_a_bundled_table_holds_none(engine: Compared, loads: list[Any], tmp_path: Path):
    document = reproduce(Request("table3", "tiny-flux", tmp_path / "out", count=3))
    assert loads == [("tiny-flux", "cpu", "float32", False)]
    assert (len(engine.job.prompts), len(engine.job.calibration_prompts), engine.job.batch_size) == (3, 24, None)
    assert engine.job.call["height"] == 64 and engine.job.call["num_inference_steps"] == 30
    assert all(row["difference"] == {} and row["here"] for row in document["rows"])
    assert "not to tiny-flux. They are not comparable" in document["text"]
    assert "not of the printed λ" in document["text"]
    lines = [line.split() for line in document["text"].splitlines() if line.strip().startswith("difference")]
    assert lines == [["difference", "–", "–", "–", "–"]] * 4


def test_memory_is_the_largest_of_all_runs_or_said_to_be_missing(
    engine: Compared, loads: list[Any], files: dict[str, Path], tmp_path: Path
):
    request = Request("table4", "flux.1-dev", tmp_path / "cpu", **files, device="cpu", memory_check=False)
    document = reproduce(request)
    assert all("memory" not in row["here"] for row in document["rows"])
    assert document["text"].count("not measured on a CPU") == 4
    engine.options = {"peak_bytes": 27000 * 2**20}
    document = reproduce(replace(request, out=tmp_path / "gpu"))
    assert [row["here"]["memory"] for row in document["rows"]] == [27000, 27001, 27002, 27003]
    assert document["rows"][3]["difference"]["memory"] == 27003 - 27022
    assert "not measured on a CPU" not in document["text"]


def test_an_unfinished_table_says_so(engine: Compared, loads: list[Any], tmp_path: Path):
    engine.options = {"rows": 4}
    document = reproduce(Request("table2", "tiny-flux", tmp_path / "out", count=2))
    assert (document["run"]["rows"], document["run"]["expected_rows"]) == (4, 6)
    assert "Unfinished: 4 of 6 rows; run the same command again to go on." in document["text"]


def test_a_method_that_cannot_run_gives_its_reason(engine: Compared, loads: list[Any], tmp_path: Path):
    engine.options = {"refused": "teacache"}
    document = reproduce(Request("table2", "tiny-flux", tmp_path / "out", count=1))
    assert (document["rows"][1]["refusal"], document["rows"][1]["here"]) == ("it is refused", {})
    assert "TeaCache is not run: it is refused." in document["text"]
    assert document["text"].splitlines()[7].split() == ["not", "run", "–", "–", "–", "–", "–", "–"]


def test_a_missed_cost_and_a_method_that_does_nothing_are_named(engine: Compared, loads: list[Any], tmp_path: Path):
    """TeaCache is asked for 1 / 1.84 and costs 0.55: near enough. T-GATE is asked for 1 / 1.19 and costs 1/3."""
    engine.options = {"cost": 0.55}
    near = reproduce(Request("table2", "tiny-flux", tmp_path / "near", count=1))["remarks"]
    assert not [remark for remark in near if "its speed-up implies:" in remark or "saves nothing" in remark]
    engine.options = {"idle": "pab-slow"}
    far = reproduce(Request("table1", "tiny-flux", tmp_path / "far", count=1))["remarks"]
    assert "T-GATE costs 0.333, not the 0.840 that its speed-up implies: its setting gets no nearer here." in far
    assert "PAB-slow leaves every result as it is without cache: it saves nothing here." in far


def test_video_tables_take_five_seeds_and_name_what_is_not_measured(
    engine: Compared, loads: list[Any], files: dict[str, Path], tmp_path: Path
):
    request = Request("table1", "wan2.1-1.3b", tmp_path / "out", **files, device="cpu", memory_check=False)
    document = reproduce(replace(request, negative_prompt="dull"))
    assert (engine.job.seeds, engine.job.call["negative_prompt"]) == (5, "dull")
    assert "VBench is not measured by this command" in document["text"] and "Euler with shift 3" in document["text"]
    assert reproduce(replace(request, seeds=2, seed=7, out=tmp_path / "two"))["run"]["seeds"] == 2
    assert engine.job.seed == 7


def test_prompts_and_memory_are_checked_before_anything_is_loaded(
    loads: list[Any], files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    request = Request("table1", "wan2.1-1.3b", tmp_path / "out")
    with pytest.raises(InvalidArgument, match=r"wan2.1-1.3b needs --prompts FILE .*946 entries of VBench_full_info"):
        prepare(request)
    with pytest.raises(InvalidArgument, match=r"flux.1-dev needs --prompts FILE .*which ones is not published"):
        prepare(replace(request, table="table2", model="flux.1-dev", prompts=files["prompts"]))
    with pytest.raises(InvalidArgument, match=r"3 prompt\(s\) are calibrated and measured on, such as 'a cat'"):
        prepare(replace(request, prompts=files["prompts"], calibration_prompts=files["prompts"]))
    with pytest.raises(InvalidArgument, match="count is 0; measure 1 or more prompts"):
        prepare(replace(request, count=0))
    monkeypatch.setattr("ertacache.evaluation.reproduce.memory.free_gib", lambda device: 8.0)
    with pytest.raises(InvalidArgument, match=r"needs about 25.3 GiB on cpu .* and 8.0 GiB are free"):
        prepare(replace(request, **files, device="cpu"))
    assert loads == [] and not (tmp_path / "out").exists()
    prepare(replace(request, **files, device="cpu", memory_check=False))
    assert loads == [("wan2.1-1.3b", "cpu", "bfloat16", False)]


def test_printed_figures_are_shown_and_nothing_is_run(loads: list[Any]):
    shown = show("table1", "open-sora-1.2")
    assert [row["paper"].get("psnr") for row in shown["rows"]][1] == 11.91
    assert "the wrong sign" in shown["text"] and shown["remarks"] == []
    assert shown["run"] is None and loads == []
    for figure in FIGURES:
        text = show(figure, "open-sora-1.2")["text"]
        assert text.startswith(f"Figure {figure[-1]} of the paper shows") and "Its values are in a picture only" in text
    assert loads == []


def test_prompts_of_vbench_are_taken_once(tmp_path: Path):
    path = tmp_path / "VBench_full_info.json"
    path.write_text(json.dumps([{"prompt_en": "a"}, {"prompt_en": "b"}, {"prompt_en": "a"}]))
    assert read_texts(path) == ["a", "b"]
    path.write_text("[1]")
    with pytest.raises(InvalidArgument, match=r"no list of objects with a prompt_en"):
        read_texts(path)


def test_weights_are_loaded_with_their_solver_and_widths(tmp_path: Path):
    pipelines.wan().save_pretrained(tmp_path)
    pipe = load(replace(WAN, source=str(tmp_path)), "cpu", "bfloat16", offload=False)
    assert type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler" and pipe.scheduler.config.shift == 3.0
    assert (pipe.vae.dtype, pipe.transformer.dtype) == (torch.float32, torch.bfloat16)
    # Not the rounded weights made wide again.
    plain = load(replace(WAN, source=str(tmp_path), flow_shift=None), "cpu", "float32", offload=False)
    assert type(plain.scheduler).__name__ == "UniPCMultistepScheduler"
    for name, weight in plain.vae.state_dict().items():
        assert torch.equal(pipe.vae.state_dict()[name], weight), name


def test_offload_is_asked_of_the_pipeline(monkeypatch: pytest.MonkeyPatch):
    pipe, asked = pipelines.flux(), list[str]()
    monkeypatch.setattr(request, "load_pipeline", lambda source, device, dtype: pipe)
    monkeypatch.setattr(pipe, "enable_model_cpu_offload", lambda device: asked.append(device))
    monkeypatch.setattr(pipe, "to", lambda device: pytest.fail("moved as a whole"))
    assert load(FLUX, "cuda:1", "bfloat16", offload=True) is pipe
    assert asked == ["cuda:1"]
