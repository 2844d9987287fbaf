"""benchmarks/quantised.py: what it judges, that runs are made once, and that tables are what the files say."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark_scripts import ROOT, load
from ertacache.calibration.full_precision import FullPrecision
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.core.compensation import Compensation
from ertacache.core.compensation_fit import CompensationSums
from ertacache.errors import InvalidArgument
from ertacache.metrics import psnr
from ertacache.pipelines.loading import load_pipeline
from ertacache.pipelines.quantizers.quantize import quantized_copy
from ertacache.runtime.run import Controller
from ertacache_zoo import catalogue
from numbered_profile import numbered

script: Any = load("quantised")
settings: Any = load("quantised_setting")
rows: Any = load("quantised_rows")
page: Any = load("quantised_page")

COUNTS = settings.Counts(2, 1, 1)
SMALL = ["--models", "tiny-flux", "--fitted", "2", "--chosen", "1", "--judged", "1", "--steps", "3"]


@pytest.fixture(scope="module")
def full() -> Any:
    return load_pipeline("tiny-flux")


def setting(full: Any, work: Path, scheme: str = "w4a4") -> Any:
    return settings.Setting("tiny-flux", scheme, full, COUNTS, work, {"num_inference_steps": 3})


def test_judged_prompts_are_held_out_and_neither_fitted_nor_chosen_on(full: Any, tmp_path: Path) -> None:
    one = settings.Setting("tiny-flux", "w4a4", full, settings.Counts(24, 8, 32), tmp_path)
    parts = one._calibrator(tmp_path / "runs", None).parts
    assert [len(part.texts) for part in parts] == [24, 8, 32]
    assert set(parts.judged.texts) <= set(catalogue.heldout_prompts(64, "tiny-flux"))
    assert set(parts.fitted.texts + parts.chosen.texts) <= set(catalogue.calibration_prompts(64, "tiny-flux"))
    assert len({*parts.fitted.texts, *parts.chosen.texts, *parts.judged.texts}) == 64


@pytest.fixture(scope="module")
def measured(full: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two schemes in one folder, the second one resumed; with the calls of the full-precision run, by scheme."""
    work, calls = tmp_path_factory.mktemp("quantised"), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        run = FullPrecision.run
        patch.setattr(script, "load_pipeline", lambda name: full)
        patch.setattr(FullPrecision, "run", lambda self, *a, **k: (calls.append("full"), run(self, *a, **k))[1])
        for scheme in ("w4a4", "w8a8"):
            calls.append(scheme)
            asked = [*SMALL, "--schemes", scheme, "--rows", "quantised,channel-k,grids-2", "--work", str(work)]
            assert script.measure(script.parsed(asked)) == []
        calls.append("again")
        patch.setattr(script, "figures", lambda *_: pytest.fail("it is measured already"))
        assert script.measure(script.parsed(asked)) == []
    return work, calls


def test_full_precision_runs_are_made_once_for_all_schemes(measured: Any) -> None:
    assert measured[1] == ["w4a4", "full", "full", "full", "w8a8", "again"]  # fitted, chosen, judged


def test_several_grids_are_measured_on_the_judged_prompts_alone(full: Any, measured: Any) -> None:
    one = setting(full, measured[0])
    call, judged = one.options["call"], one.calibrator.parts.judged
    several = quantized_copy(full, "w4a4x2")
    exact, drawn = (run_pipeline(pipe, judged, Controller(), call) for pipe in (full, several))
    found = json.loads((one.folder / "grids-2.json").read_text())
    assert found["psnr"] == pytest.approx(psnr(drawn, exact).tolist(), abs=1e-4)
    assert (found["what"], found["T"], found["price"]) == ("w4a4x2", 3, None)


def test_figures_are_distances_to_the_full_precision_run(full: Any, measured: Any) -> None:
    """Against pictures made here, one with K of sums that are made here."""
    one = setting(full, measured[0])
    quantised = quantized_copy(full, "w4a4")
    call, (fitted, _, judged) = one.options["call"], one.calibrator.parts
    exact, plain = (run_pipeline(pipe, judged, Controller(), call) for pipe in (full, quantised))
    found = {name: json.loads((one.folder / f"{name}.json").read_text()) for name in ("quantised", "channel-k")}
    assert found["quantised"]["psnr"] == pytest.approx(psnr(plain, exact).tolist(), abs=1e-4)
    assert found["quantised"]["price"] is None and found["quantised"]["T"] == 3

    seen = _Seen(), _Seen()
    run_pipeline(full, fitted, seen[0], call, decode=False)
    run_pipeline(quantised, fitted, _Seen(seen[1].outputs, seen[0].outputs), call, decode=False)
    gains = list[torch.Tensor]()
    for o, q in zip(seen[0].outputs, seen[1].outputs, strict=True):
        sums = CompensationSums(-1)
        sums.update(o, q)
        gains.append(sums.solve("gain", "channel")[0])
    corrected = run_pipeline(quantised, judged, _Scaled(gains), call)
    assert found["channel-k"]["psnr"] == pytest.approx(psnr(corrected, exact).tolist(), abs=1e-2)
    paid = found["channel-k"]["price"]
    assert paid["share"] == pytest.approx(paid["seconds"] / paid["step_seconds"]) and paid["file_bytes"] > 1000


class _Seen(Controller):
    """Takes down what the solver received, and gives it something else where that is told."""

    def __init__(self, outputs: list[torch.Tensor] | None = None, given: list[torch.Tensor] | None = None) -> None:
        self.outputs, self._given = [] if outputs is None else outputs, given

    def solve(self, run: Any, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        self.outputs.append(output.clone())
        return output if self._given is None else self._given[run.step]


class _Scaled(Controller):
    def __init__(self, gains: list[torch.Tensor]) -> None:
        self._gains = gains

    def solve(self, run: Any, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return output * self._gains[run.step].float()


def test_a_row_of_other_settings_is_refused(full: Any, measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "load_pipeline", lambda name: full)
    asked = [*SMALL[:-1], "4", "--schemes", "w4a4", "--rows", "quantised", "--work", str(measured[0])]
    with pytest.raises(SystemExit, match=r"settings\.json was made with .*; choose another --work"):
        script.measure(script.parsed(asked))


def test_one_rows_fault_ends_alone(full: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def figures(one: Any, row: str) -> dict[str, Any]:
        if row == "bias":
            raise RuntimeError("no such row")
        return {"psnr": [30.0], "seconds": 1.0, "what": "words"}

    monkeypatch.setattr(script, "load_pipeline", lambda name: full)
    monkeypatch.setattr(script, "figures", figures)
    monkeypatch.setattr(script, "expected", lambda *_: "soon")
    asked = [*SMALL, "--schemes", "w4a8", "--rows", "bias,ours,full-cached", "--work", str(tmp_path)]
    assert script.measure(script.parsed(asked)) == ["tiny-flux w4a8 bias"]
    assert "no such row" in capsys.readouterr().err
    made = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json"))
    assert made == [
        "tiny-flux/full-precision/settings.json", "tiny-flux/full/full-cached.json", "tiny-flux/w4a8/ours.json"
    ]  # fmt: skip


@pytest.mark.parametrize("option", ["models", "schemes", "rows"])
def test_unknown_names_are_refused(option: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"--{option} has 'tiny'; there are "):
        list(script.settings_of(script.parsed([f"--{option}", "tiny"])))


def test_what_is_said_to_take_grows_with_the_rows(full: Any, tmp_path: Path) -> None:
    text = script.expected(setting(full, tmp_path), ["quantised", "channel-k"])
    assert text.startswith("tiny-flux w4a4: 2 rows, at most 10 runs of one prompt of 3 steps, about ")


def test_corrections_of_a_plan_are_those_of_computed_steps() -> None:
    """And the term for the step before only where that one was computed."""
    plan = numbered("##.##.#")
    T = plan.schedule.T
    table = Compensation(torch.full((T, 1), 0.5), torch.tensor([[0.0], *[[2.0]] * (T - 1)]), torch.full((T, 1), 3.0))
    found = rows.at_computed_steps(table, plan)
    assert found.gain.flatten().tolist() == [0.5, 0.5, 1, 0.5, 0.5, 1, 0.5]
    assert found.bias.flatten().tolist() == [3, 3, 0, 3, 3, 0, 3]
    assert found.previous.flatten().tolist() == [0, 2, 0, 0, 2, 0, 0]


def test_a_checkpoint_is_given_what_it_lacks(tmp_path: Path) -> None:
    class Store:
        def file(self, name: str, kind: str) -> Path:
            return Path(f"{name}.{kind}")

    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()
    for name in ("one.pt", "one.bin", "two.pt", "other.pt"):
        (source / name).write_text("new")
    (target / "two.pt").write_text("old")
    settings.copied(["one", "two", "three"], Store(), source, target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "one.pt": "new", "one.bin": "new", "two.pt": "old"
    }  # fmt: skip


#: Model, scheme, row -> PSNR of two prompts.
FIGURES = {
    ("tiny-wan", "w4a4", "quantised"): [20.0, 22.0],
    ("tiny-flux", "full", "full-cached"): [40.0, 42.0],
    ("tiny-flux", "w8a8", "cached"): [39.0, 42.5],
    ("tiny-flux", "w8a8", "own-plan"): [30.0, 31.0],
    ("tiny-flux", "w4a4", "quantised"): [20.0, 24.0],
    ("tiny-flux", "w4a4", "bias"): [23.0, 28.0],
    ("tiny-flux", "w4a4", "ours"): [21.0, 25.5],
    ("tiny-flux", "w4a4", "grids-2"): [21.0, 26.0],
}
PRICE = {"step_seconds": 0.02, "seconds": 2e-5, "share": 0.001, "file_bytes": 2048, "held_bytes": 512}


def written(work: Path, **changes: Any) -> list[Path]:
    files = list[Path]()
    for (model, scheme, row), values in FIGURES.items():
        cell = {"row": row, "model": model, "scheme": scheme, "what": f"{row} words", "T": 30, "psnr": values}
        cell |= {"ssim": [0.5, 0.75], "error": [-1.0, -2.0], "price": PRICE if row == "ours" else None, "seconds": 1.0}
        cell |= {"settings": {"fitted": 24, "chosen": 8, "judged": 2}, **changes}
        files.append(work / f"{model}-{scheme}-{row}.json")
        files[-1].write_text(json.dumps(cell))
    return files


@pytest.fixture
def result(tmp_path: Path) -> Any:
    facts = {"machine": "one core", "versions": {"torch": "2", "diffusers": "1"}}
    page.write(page.merged(written(tmp_path), facts), tmp_path / "result.json")
    return json.loads((tmp_path / "result.json").read_text())


def test_gains_are_taken_prompt_by_prompt(result: Any) -> None:
    by = {(row["model"], row["scheme"], row["row"]): row for row in result["rows"]}
    assert list(by)[:2] == [("tiny-flux", "w4a4", "quantised"), ("tiny-flux", "w4a4", "bias")]
    assert list(by)[-2:] == [("tiny-flux", "full", "full-cached"), ("tiny-wan", "w4a4", "quantised")]
    bias, ours, cached = (by["tiny-flux", *key] for key in (("w4a4", "bias"), ("w4a4", "ours"), ("w8a8", "cached")))
    assert (bias["gain"], bias["gain_error"]) == (3.5, round(math.sqrt(0.5) / math.sqrt(2), 2))
    assert (ours["gain"], cached["gain"]) == (1.25, -0.25)
    assert ours["ssim"] == 0.625 and ours["latent_error_dB"] == -15.0 and ours["price"] == PRICE
    assert "gain" not in by["tiny-flux", "w4a4", "quantised"] and "gain" not in by["tiny-flux", "full", "full-cached"]


def test_the_tables_word_by_word(result: Any) -> None:
    assert page.part(result) == (
        "2 judged prompts, 24 fitted to and 8 that chose; one core; torch 2, diffusers 1.\n\n"
        "| w4a4, dB | tiny-flux | tiny-wan |\n|---|---:|---:|\n"
        "| quantised, not corrected | 22.00 ± 2.00, 0.625 | 21.00 ± 1.00, 0.625 |\n"
        "| bias per channel | 25.50 (+3.50 ± 0.50), 0.625 | – |\n"
        "| **ours: chosen by `calibrate_quantized`** | 23.25 (+1.25 ± 0.25), 0.625 | – |\n"
        "| 2 grids, not corrected | 23.50 (+1.50 ± 0.50), 0.625 | – |\n"
        "| best correction, goal +3 | +3.50: met | – |\n"
        "| several grids, goal +3 | +1.50: not met | – |\n\n"
        "| T/2, dB | quantised, T steps | full precision, T/2 steps | full precision, plan | **ours** | own plan, no "
        "correction | one after the other | ours on 4 grids | ours minus full precision, plan |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
        "| tiny-flux w8a8 | – | – | 41.00 ± 1.00 | 40.75 ± 1.75 | 30.50 ± 0.50 | – | – | "
        "-0.25 ± 0.75, goal −0.5: met |\n\n"
        "| ours | is | of a step | of how many ms | file | held |\n|---|---|---:|---:|---:|---:|\n"
        "| tiny-flux w4a4 | ours words | 0.10 % | 20.0 | 2.0 KiB | 0.5 KiB |"
    )


def test_files_of_different_settings_and_none_at_all_are_refused(tmp_path: Path) -> None:
    files = written(tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(SystemExit, match=r"was made with \{'judged': 9\}, not .*; choose another --work"):
        page.merged([*files, *written(tmp_path / "other", settings={"judged": 9})], {})
    with pytest.raises(SystemExit, match=r"nothing is measured yet; run benchmarks/quantised\.py without --merge"):
        page.write(page.merged([], {}), tmp_path / "result.json")


def test_the_committed_result_is_of_enough_prompts_and_small() -> None:
    path = ROOT / "benchmarks" / "results" / "quantised.json"
    found = json.loads(path.read_text())
    assert path.stat().st_size < 100_000 and found["header"]["judged"] >= 32
    assert all(row["prompts"] == found["header"]["judged"] for row in found["rows"])
    corrected = [row for row in found["rows"] if row["row"] == "ours" and "price" in row]
    assert corrected and all(row["price"]["share"] < page.SHARE for row in corrected)
