"""benchmarks/frontier.py: judged as in a comparison, resumable, and the result is what its files say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ertacache
from benchmark_scripts import load
from ertacache.baselines import catalogue
from ertacache.baselines.fewer_steps import FewerSteps
from ertacache.baselines.first_block_cache import FirstBlockCache
from ertacache.baselines.t_gate import TGate
from ertacache.baselines.uniform import Uniform
from ertacache.calibration.prompts import Prompts
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.evaluation.comparison.entrant import Entrant
from ertacache.evaluation.comparison.job import Job
from ertacache.evaluation.comparison.run import run_comparison
from ertacache.runtime.watch import Executed
from numbered_profile import numbered

plan: Any = load("frontier_plan")
cells: Any = load("frontier_cells")
script: Any = load("frontier")

CELL = cells.Cell("tiny-flux", 10.0, 0, 3, 3, {"num_inference_steps": 8})


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cells.loaded(CELL, tmp_path_factory.mktemp("judge"))


def test_no_caption_is_in_two_splits_or_both_lists() -> None:
    for name in cells.GUIDANCE:
        lists = [part for split in range(3) for part in cells.captions(name, split, 40, 32)]
        assert [len(part) for part in lists] == [40, 32] * 3
        assert len({caption for part in lists for caption in part}) == 3 * 72
    assert cells.captions("tiny-wan", 1, 40, 32) == cells.captions("tiny-wan", 1, 40, 32)


def test_every_model_takes_part_at_its_own_guidance_and_at_more() -> None:
    for name, (argument, weights) in cells.GUIDANCE.items():
        assert cells.call_arguments(name, {})[argument] == weights[0] == min(weights) and len(weights) > 1
    chosen = list(cells.cells(["tiny-wan", "tiny-flux"], [10.0], [0, 1], calibration=2, judged=3))
    assert [cell.name for cell in chosen] == [
        *("tiny-wan@10/split-0", "tiny-wan@10/split-1"),
        *("tiny-flux@10/split-0", "tiny-flux@10/split-1"),
    ]


def test_everybody_takes_part_and_the_plan_once_for_each_effort() -> None:
    names = [plan.name_of(method) for method in plan.methods("all")]
    assert names == [plan.OURS, plan.EVEN, *(method.key for method in catalogue.METHODS)]
    assert [method.effort for method in plan.methods("plan-fast, plan-thorough")] == ["fast", "thorough"]
    assert [plan.title_of(method) for method in plan.methods("plan-fast,plan-balanced,uniform")] == [
        *("plan, fast (ours)", "plan (ours)"), Uniform.title,
    ]  # fmt: skip
    with pytest.raises(InvalidArgument, match="no method 'plan'"):
        plan.methods("plan")
    with pytest.raises(InvalidArgument, match="name different methods"):
        plan.methods("uniform,uniform")


def test_a_plan_is_what_calibrate_gives_for_the_steps(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    profile = numbered("#.##.#.#")

    def calibrate(pipe: Any, prompts: Any, *, effort: str, **options: Any) -> Any:
        asked.append((pipe, prompts, effort, options))
        return [profile]

    monkeypatch.setattr(ertacache, "calibrate", calibrate)
    found = plan.Planned(effort="thorough").planned(judge.bench, 0.5)
    ((pipe, prompts, effort, options),) = asked
    assert pipe is judge.pipe and prompts == judge.bench.prompts.texts and effort == "thorough"
    assert options == {
        "compute_steps": [4], "seed": 0, "call": judge.bench.call, "batch_size": None, "show_progress": False,
    }  # fmt: skip
    assert found.profile is profile and found.share == 5 / 8 and cells.knob(found) == "#.##.#.#"


def test_the_plans_of_an_effort_come_from_one_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the budgets that are wanted of it, and of the one it is asked for."""
    asked: list[tuple[str, list[int]]] = []
    profiles = {K: numbered("#" * K + "." * (8 - K)) for K in (2, 3, 4)}

    def calibrate(pipe: Any, prompts: Any, *, effort: str, compute_steps: list[int], **options: Any) -> Any:
        asked.append((effort, compute_steps))
        return [profiles[K] for K in compute_steps]

    monkeypatch.setattr(ertacache, "calibrate", calibrate)
    fast, balanced = plan.methods("plan-fast,plan-balanced")
    judge = cells.loaded(CELL, tmp_path, [(2, fast), (4, fast), (2, balanced)])
    assert [judge._from_one_recording(fast, K).profiles[K] for K in (4, 2)] == [profiles[4], profiles[2]]
    assert asked == [("fast", [2, 4])]
    assert judge._from_one_recording(balanced, 3).planned(judge.bench, 3 / 8).profile is profiles[3]
    assert asked[1:] == [("balanced", [3, 4])]
    assert judge._from_one_recording(balanced, 4).planned(judge.bench, 0.5).share == 0.5 and len(asked) == 2


@pytest.mark.parametrize("method", [FewerSteps(), Uniform(), FirstBlockCache()], ids=lambda method: method.key)
def test_the_figures_are_those_of_a_comparison(judge: Any, method: Any, tmp_path: Path) -> None:
    """In batches of eight where the method allows it, and one by one there: the same calls and costs."""
    found = judge.figures(method, 2)
    call = judge.bench.call
    job = Job(judge.prompts.texts, judge.bench.prompts.texts, call, seed=judge.prompts.seed, samples=0)
    entrant = Entrant("one", method, 0.5)
    out = run_comparison(judge.pipe, [entrant], job, tmp_path, metrics=["psnr", "ssim"], show_progress=False)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    rows = [line for line in lines if line.get("entrant") == "one"]
    assert (found["T"], found["K"]) == (8, 4)
    assert found["cost"] == [row["cost"] for row in rows] and len(rows) == 3
    assert found["block_calls"] == [row["block_calls"] for row in rows]
    for name in ("psnr", "ssim", "latent_error"):
        assert found[name] == pytest.approx([row[name] for row in rows], abs=2e-3), name
    (tuned,) = [one for one in json.loads((out / "entrants.json").read_text())["entrants"] if one["id"] == "one"]
    assert found["tuned_cost"] == tuned["tuned_cost"]
    assert found["knob"] == f"{method.knob.field} {tuned['settings'][method.knob.field]:.4g}"


def test_who_cannot_run_says_why(judge: Any) -> None:
    assert "joint" in judge.figures(TGate(), 2)["refusal"]


def test_a_prompt_has_its_share_of_a_batch() -> None:
    run = Executed(torch.zeros(3), [2, 0], [12, 0], [6, 0], [8, 0], latents=torch.arange(4.0).view(4, 1))
    share = cells.share_of(run, 2, 4)
    assert share.signature == ((2, 12, 6, 2), (0, 0, 0, 0)) and share.latents.tolist() == [[2.0]]
    with pytest.raises(CalibrationError, match=r"3 prompts went through the denoiser as \[8, 0\] entries"):
        cells.share_of(run, 0, 3)


class Fake:
    """A judge that measures nothing, and fails at one method."""

    asked: list[tuple[str, int]]

    def __init__(self) -> None:
        self.asked = []

    def figures(self, method: Any, budget: int) -> dict[str, Any]:
        self.asked.append((method.key, budget))
        if method.key == "fewer-steps" and len(self.asked) < 3:
            raise RuntimeError("a fault of its own")
        return {"method": method.key, "psnr": [1.0]}


def test_a_run_that_was_cut_off_goes_on_and_one_fault_costs_one_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Fake()
    monkeypatch.setattr(script, "loaded", lambda *_: fake)
    part = script.Part([CELL], [FewerSteps(), Uniform()], [2, 3])
    failed = "tiny-flux@10/split-0/fewer-steps@2.json"
    assert script.measure(part, tmp_path, show_progress=False) == [failed]
    assert "a fault of its own" in capsys.readouterr().err
    assert fake.asked == [("fewer-steps", 2), ("uniform", 2), ("fewer-steps", 3), ("uniform", 3)]
    assert script.measure(part, tmp_path, show_progress=False) == []
    assert fake.asked[4:] == [("fewer-steps", 2)]
    assert script.measure(part, tmp_path, show_progress=False) == [] and len(fake.asked) == 5


def test_figures_of_other_settings_are_not_taken_for_these(tmp_path: Path) -> None:
    kept = load("kept").kept
    assert kept(tmp_path / "a" / "one.json", {"n": (1, 2)}, lambda: {"x": 1}) == {"settings": {"n": (1, 2)}, "x": 1}
    again = kept(tmp_path / "a" / "one.json", {"n": (1, 2)}, lambda: {"x": 2})
    assert again == {"settings": {"n": [1, 2]}, "x": 1}
    with pytest.raises(SystemExit, match=r"was made with \{'n': \[1, 2\]\}, not \{'n': 3\}; choose another --work"):
        kept(tmp_path / "a" / "one.json", {"n": 3}, lambda: {"x": 2})


def test_a_process_takes_the_part_that_it_is_told() -> None:
    given = ["--models", "tiny-wan", "--guidance", "10", "--splits", "1", "--methods", "uniform", "--budgets", "2,5"]
    part = script.part_of(script.parsed([*given, "--prompts", "4", "--calibration", "6", "--steps", "9"]))
    assert part.cells == [cells.Cell("tiny-wan", 10.0, 1, 6, 4, {"num_inference_steps": 9})]
    assert part.budgets == [2, 5] and part.methods == [Uniform()]
    everything = script.part_of(script.parsed([]))
    assert len(everything.cells) == 2 * sum(len(weights) for _, weights in cells.GUIDANCE.values())
    assert {(cell.calibration, cell.judged) for cell in everything.cells} == {(40, 32)}
    assert Prompts(("a",), 1).first(1)  # a prompt keeps its noise in whatever batch it runs
