"""benchmarks/gpu.py on the CPU at tiny sizes: everything but what a GPU alone can say."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ertacache.extras import present
from gpu_scripts import build, clock, gpu, measure, models, quantised, run, variants

CPU = torch.device("cpu")
PLAN = {
    "model", "variant", "layers", "plan", "T", "K", "cost", "calls", "repetitions", "seconds", "step_seconds",
    "peak_bytes",
}  # fmt: skip
CACHED = PLAN | {
    "ratio", "share_of_ideal", "predicted_seconds", "predicted_share", "held_bytes", "more_bytes", "bound_bytes",
}  # fmt: skip
PEER = CACHED - {"calls", "step_seconds", "predicted_seconds", "predicted_share", "held_bytes", "bound_bytes"}
CALIBRATION = {"model", "variant", "layers", "plan", "T", "K", "prompts", "seconds", "uncached_runs", "derived"}


def machine(**changes: Any) -> Any:
    return run.Machine(CPU, **{"free": lambda: 2**40, "host": lambda: 2**40, **changes})


def tiny(model: Any) -> Any:
    return build.build(model, model.tiny, CPU, 2**40, 0)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], str]]:
    """The whole benchmark, once: its JSON and its table."""
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    busy = machine(clock=time.process_time)  # on a busy machine the minutes would be over before the work is
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "REPETITIONS", 1)
        assert gpu.main(["--tiny", "--device", "cpu", "--seed", "3", "--out", str(out)], busy) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["gpu.json", "gpu.md"]
    yield json.loads(out.read_text()), out.with_suffix(".md").read_text()


def rows(result: Any, variant: str, plan: str = "") -> list[dict[str, Any]]:
    return [row for row in result[0]["rows"] if row["variant"] == variant and row["plan"].startswith(plan)]


def test_the_header_names_machine_seed_and_goals(result: Any) -> None:
    header = result[0]["header"]
    assert set(header) == {"date", "seed", "minutes", "tiny", "machine", "note", "goals"}
    assert (header["seed"], header["minutes"], header["tiny"]) == (3, 8.0, True)
    assert {"device", "torch", "diffusers", "transformers", "accelerate"} <= set(header["machine"])
    assert header["machine"]["device"] == "CPU" and header["machine"]["torch"] == torch.__version__
    assert header["goals"] == {"share_of_ideal": 0.98, "predicted_share": 0.01, "correction_share": 0.005}
    assert "No figure here says anything about a real model or a GPU" in header["note"]


def test_every_entry_is_there_once_and_says_what_became_of_it(result: Any) -> None:
    entries = {(entry["model"], entry["variant"]): (entry["status"], entry["reason"]) for entry in result[0]["entries"]}
    assert len(entries) == len(result[0]["entries"]) == 4 * 9
    for (_, variant), (status, reason) in entries.items():
        if variant in ("int8dq", "fp8wo") and not present("torchao"):
            assert status == "skipped" and reason.startswith(f"the scheme {variant!r} needs torchao")
        else:
            needs = variant in ("CUDA graphs", "model offload")
            assert (status, reason) == (("skipped", "needs CUDA") if needs else ("measured", ""))


@pytest.mark.parametrize("variant", ["eager", "compiled", "group offload"])
def test_plans_call_the_denoiser_as_often_as_their_schedule_says(result: Any, variant: str) -> None:
    found = rows(result, variant)
    branches = {"FLUX.1-dev": 1, "Wan2.1-T2V-1.3B": 2, "CogVideoX-2B": 1, "Open-Sora 1.2": 1}
    assert Counter(row["model"] for row in found) == dict.fromkeys(branches, 3)
    for row in found:
        K = {"uncached": 12, "T/2": 6, "T/3": 4}[row["plan"]]
        assert (row["T"], row["K"], row["calls"]) == (12, K, K * branches[row["model"]])
        assert set(row) - {"note"} == (PLAN if K == 12 else CACHED)
        assert row["repetitions"] == 1 and row["cost"] == pytest.approx(K / 12, abs=1e-6)
        if K < 12:
            # p outputs and one latent: 16 tokens of 64 channels, or 3 frames of 16 or 4 channels of 4 × 4; float32.
            size = 4 * {"FLUX.1-dev": 16 * 64, "Open-Sora 1.2": 3 * 4 * 4 * 4}.get(row["model"], 3 * 16 * 4 * 4)
            assert row["held_bytes"] == row["bound_bytes"] == 4 * size
            assert row["share_of_ideal"] == pytest.approx(row["ratio"] * K / 12, rel=1e-5)
            assert row["predicted_share"] == pytest.approx(row["predicted_seconds"] / row["step_seconds"], rel=1e-4)


def test_a_denoiser_without_repeated_blocks_is_compiled_whole_and_says_so(result: Any) -> None:
    notes = {row["model"]: row["note"] for row in rows(result, "compiled")}
    assert notes == {
        "FLUX.1-dev": "backend 'eager' makes no kernels",
        "Wan2.1-T2V-1.3B": "backend 'eager' makes no kernels",
        "CogVideoX-2B": "the whole denoiser is compiled: `_repeated_blocks` attribute is empty; "
        "backend 'eager' makes no kernels",
        "Open-Sora 1.2": "backend 'eager' makes no kernels",
    }


def test_a_quantised_model_is_run_with_and_without_a_correction(tmp_path: Path, monkeypatch: Any) -> None:
    variant = variants.Variant("w8a8", partial(variants._quantised, "w8a8"), scheme="w8a8")
    monkeypatch.setitem(run.VARIANTS, "w8a8", variant)
    monkeypatch.setattr(measure, "REPETITIONS", 2)
    monkeypatch.setattr(run, "ordered", lambda chosen: [(model, "w8a8") for model in chosen])
    out = tmp_path / "gpu.json"
    assert gpu.main(["--tiny", "--device", "cpu", "--out", str(out)], machine()) == 0
    data = json.loads(out.read_text())
    assert [(entry["status"], entry["reason"]) for entry in data["entries"]] == [("measured", "")] * 4
    assert [row["plan"] for row in data["rows"]] == ["uncached", "corrected"] * 4
    for row in data["rows"]:
        assert (row["variant"], row["K"], row["cost"], row["repetitions"]) == ("w8a8", 12, 1.0, 2)
    for plain, row in zip(data["rows"][::2], data["rows"][1::2], strict=True):
        assert set(plain) == PLAN and set(row) == PLAN | {
            "ratio", "share_of_ideal", "correction_share", "held_bytes", "more_bytes",
        }  # fmt: skip
        channels = {"FLUX.1-dev": 64, "Open-Sora 1.2": 4}.get(row["model"], 16)
        assert row["calls"] == plain["calls"] and row["held_bytes"] == 2 * 12 * channels * 4  # gain and bias, float32
        share = row["step_seconds"] / plain["step_seconds"] - 1
        assert row["correction_share"] == pytest.approx(share, rel=1e-3, abs=1e-5)


def test_a_hand_made_correction_changes_every_step_as_it_says() -> None:
    built = tiny(models.FLUX)
    profile = quantised.corrected_by_hand(built, clock.timed(built, 0))
    table = profile.compensation
    assert profile.schedule.K == profile.schedule.T == table.T == 12 and table.channels == 64
    assert (table.gain == 0.99).all() and (table.bias == 0.01).all() and not table.previous.any()


def test_a_quantiser_that_is_not_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    reason = variants.VARIANTS["fp8wo"].refusal(tiny(models.FLUX), 2**40)
    assert reason.startswith("the scheme 'fp8wo' needs torchao") and "ertacache[torchao]" in reason


@pytest.mark.parametrize("part", [2, 3])
def test_other_caches_run_at_the_cost_that_was_counted(result: Any, part: int) -> None:
    for name in ("MagCache (diffusers)", "TaylorSeer (diffusers)"):
        found = rows(result, run.PEERS, f"{name}, T/{part}")
        assert [row["cost"] for row in found] == [pytest.approx(1 / part, abs=1e-6)] * 4
    for row in rows(result, run.PEERS, f"FirstBlockCache (diffusers), T/{part}"):
        assert abs(row["cost"] - 1 / part) < 0.1
    refused = [row for row in rows(result, run.PEERS) if "reason" in row]
    # cache-dit knows the block lists of its own models.
    assert {(row["model"], row["plan"].split(" ")[0]) for row in refused} == {("Open-Sora 1.2", "DBCache")}
    for row in (row for row in rows(result, run.PEERS) if row not in refused):
        assert set(row) == PEER and row["ratio"] > 0


def test_a_missing_cache_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.DBCache, "refusal", lambda *_: "DBCache needs cache-dit")
    monkeypatch.setattr(measure, "PARTS", (2,))
    monkeypatch.setattr(measure, "peers", lambda T, part: (measure.DBCache(),))
    uncached = {"T": 12, "seconds": 1.0, "peak_bytes": None}
    left = measure.Time(lambda: 0.0, 100.0)
    found = list(measure.peer_rows(tiny(models.FLUX), uncached, left, 0))
    assert found == [{"plan": "DBCache (cache-dit), T/2", "T": 12, "K": 6, "reason": "DBCache needs cache-dit"}]


def test_a_calibration_is_priced_in_seconds_and_runs(result: Any) -> None:
    found = rows(result, run.CALIBRATION)
    assert len(found) == 4
    # Each of 24 once, 2 steps to look, 4 runs with one error; 7 plans on the 14 fitted, 4 on the 5 that choose, and
    # the plan, reuse and fewer steps on the 5 that judge.
    runs = 24 + 2 / 12 + 4 + (7 * 14 + 4 * 5 + 3 * 5) / 2
    for row in found:
        made = 8.25 if row["model"].startswith("FLUX") else 8.75  # two branches add own history to the plans
        assert set(row) == CALIBRATION and (row["T"], row["K"], row["prompts"], row["uncached_runs"]) == (8, 4, 2, made)
        uncached = next(r for r in rows(result, "eager", "uncached") if r["model"] == row["model"])
        assert row["derived"] == {
            "T": 12, "K": 6, "prompts": 24, "uncached_runs": pytest.approx(runs),
            "seconds": pytest.approx(runs * uncached["seconds"], rel=1e-4),
        }  # fmt: skip


def test_the_table_holds_every_row_and_the_caveat(result: Any) -> None:
    data, table = result
    lines = table.splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2 + len([r for r in data["rows"] if "derived" not in r])
    assert "the pictures mean nothing" in table and sum("a calibration on 2 prompts" in line for line in lines) == 4


def test_the_minutes_are_kept_by_the_clock(tmp_path: Path) -> None:
    ticks = iter(range(0, 10_000, 10))
    out = tmp_path / "gpu.json"
    arguments = ["--tiny", "--device", "cpu", "--models", "FLUX.1-dev", "--minutes", "1", "--out", str(out)]
    assert gpu.main(arguments, machine(clock=lambda: next(ticks))) == 0
    data = json.loads(out.read_text())
    # One look at the clock before the entry and one before each run; two where it says no.
    assert [(row["plan"], row["repetitions"]) for row in data["rows"]] == [("uncached", 2), ("T/2", 1), ("T/3", 1)]
    assert (measure.repetitions(14.9), measure.repetitions(15.0)) == (3, 1)
    first, *others = data["entries"]
    assert first["status"] == "in part"
    assert first["reason"] == "a run of 6 computed steps needs about 0 s, and 0 s are left"
    assert [entry["status"] for entry in others] == ["not reached"] * 8


def test_full_size_is_the_published_size() -> None:
    """Weights in bfloat16 take two bytes each; counted without making them. 36 of Open-Sora's stay in float32."""
    counts = [build.weight_bytes(model, model.full.config, torch.device("cuda")) // 2 for model in models.MODELS]
    assert counts == [11_901_408_320, 1_418_996_800, 1_693_783_872, 1_207_643_972 + 36]
    calls = [model.full.call for model in models.MODELS]
    assert [call["num_inference_steps"] for call in calls] == [28, 50, 50, 30]
    assert [(call["height"], call["width"], call.get("num_frames")) for call in calls] == [
        (1024, 1024, None), (480, 832, 81), (480, 720, 49), (480, 854, 51),
    ]  # fmt: skip


@pytest.mark.parametrize("model", models.MODELS, ids=lambda model: model.name)
def test_half_precision_runs_as_on_a_gpu(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "dtype_on", lambda device: torch.bfloat16)
    built = tiny(model)
    uncached = clock.timed(built, 0)
    cached = clock.timed(built, 0, clock.by_hand(built, uncached, 4))
    assert built.pipe.transformer.dtype == torch.bfloat16
    assert built.weights == build.weight_bytes(model, model.tiny.config, CPU)
    assert cached.extra_bytes <= clock.bound_bytes(uncached)
    assert sum(cached.calls) == 4 * len(model.contexts)


def test_fewer_layers_where_memory_is_short_and_none_where_it_is_shorter(tmp_path: Path) -> None:
    half = build.weight_bytes(models.FLUX, build.reduced(models.FLUX, models.FLUX.tiny.config, 0.5), CPU)
    built = build.build(models.FLUX, models.FLUX.tiny, CPU, half, 0)
    assert (built.layers, built.weights) == ("1 + 1 of 2 + 2", half)
    assert len(built.pipe.transformer.transformer_blocks) == len(built.pipe.transformer.single_transformer_blocks) == 1
    out = tmp_path / "gpu.json"
    arguments = ["--tiny", "--device", "cpu", "--models", "FLUX.1-dev", "--out", str(out)]
    assert gpu.main(arguments, machine(free=lambda: 2**10)) == 0
    data = json.loads(out.read_text())
    assert data["rows"] == [] and {entry["status"] for entry in data["entries"]} == {"skipped"}
    needs = build.gib(half)
    assert data["entries"][0]["reason"] == f"an eighth of its layers needs {needs}, and {build.gib(2**10)} are free"


def test_weights_that_do_not_fit_the_host_are_not_offloaded() -> None:
    built = replace(tiny(models.FLUX), weights=2**30)
    reason = variants.VARIANTS["group offload"].refusal(built, 2**30)
    assert reason == "its weights need 2 GiB of the host's memory, and 1 GiB are free"
    assert variants.VARIANTS["group offload"].refusal(built, 2**31) is None


def test_an_entry_that_fails_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(built: Any) -> str:
        raise RuntimeError("no such kernel\nand much more")

    monkeypatch.setitem(run.VARIANTS, "compiled", variants.Variant("compiled", broken))
    out = tmp_path / "gpu.json"
    work = [(models.COGVIDEOX, "compiled"), (models.COGVIDEOX, "eager")]
    monkeypatch.setattr(run, "ordered", lambda chosen: work)
    assert gpu.main(["--tiny", "--device", "cpu", "--out", str(out)], machine()) == 0
    entries = json.loads(out.read_text())["entries"]
    assert [(entry["status"], entry["reason"]) for entry in entries] == [
        ("failed", "RuntimeError: no such kernel"),
        ("measured", ""),
    ]


def test_an_interrupted_run_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "peer_rows", interrupted)
    out = tmp_path / "gpu.json"
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--tiny", "--device", "cpu", "--models", "FLUX.1-dev", "--out", str(out)], machine())
    assert [row["plan"] for row in json.loads(out.read_text())["rows"]] == ["uncached", "T/2", "T/3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]


def test_what_is_worth_most_comes_first_and_nothing_is_left_out() -> None:
    work = run.ordered(models.MODELS)
    assert work[: len(run.FIRST)] == list(run.FIRST)
    assert Counter(work) == {(model, name): 1 for model in models.MODELS for name in run.WORK}
    assert [name for model, name in run.ordered([models.WAN])][:2] == ["eager", "compiled"]


def test_calls_that_are_not_the_schedules_are_an_error() -> None:
    built = replace(tiny(models.FLUX), model=replace(models.FLUX, contexts=("cond", "uncond")))
    with pytest.raises(RuntimeError, match=r"called \[1, 1, .*\] times in the steps, and \[2, 2, .*\] were due"):
        clock.timed(built, 0)


BAD = [
    (["--minutes", "0"], "--minutes is 0; give a number above 0, such as 8"),
    (["--minutes", "nan"], "--minutes is nan; give a number above 0, such as 8"),
    (["--minutes", "long"], "invalid float value: 'long'"),
    (["--models", "FLUX"], "--models has 'FLUX'; there are FLUX.1-dev, Wan2.1-T2V-1.3B, CogVideoX-2B, Open-Sora 1.2"),
    (["--seed", "-1"], "--seed is -1; give a whole number from 0"),
    (["--device", "gpu"], "device is 'gpu', which torch does not know"),
    (["--out", "table.md"], "--out is table.md; name a .json file"),
    (["--out", "/dev/null/gpu.json"], "cannot write the JSON file /dev/null/gpu.json"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda value: " ".join(value) if type(value) is list else ""
)
def test_bad_input_is_refused_before_anything_runs(arguments: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as found:
        gpu.main(["--tiny", "--device", "cpu", *arguments])
    assert found.value.code == 2 and message in " ".join(capsys.readouterr().err.split())


def test_full_size_on_the_cpu_is_refused(capsys: Any) -> None:
    with pytest.raises(SystemExit) as found:
        gpu.main(["--device", "cpu"])
    assert found.value.code == 2 and "take hours; add --tiny" in capsys.readouterr().err


def test_no_cuda_is_told(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as found:
        gpu.main([])
    assert found.value.code == 2 and "this machine has no cuda" in capsys.readouterr().err
