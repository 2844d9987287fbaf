"""An interrupted calibration continues: nothing finished is run again, and the result is the same to the byte."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dummy_pipeline import PROMPTS, DummyPipeline, mixture_pipeline, untimed
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.checkpoint import Cost, RunStore
from ertacache.errors import CalibrationError
from ertacache.profile.profile import Profile

CALL: dict[str, Any] = {"num_inference_steps": 9, "guidance_scale": 5.0, "seed": 5, "show_progress": False}
LOCKSTEP: dict[str, Any] = {
    "compute_steps": 4,
    "schedule": "policy",
    "basis": "fitted",
    "history": "auto",
    "timesteps": 0.3,
}
BATCHES: dict[str, Any] = {
    "threshold": 0.4,
    "basis": "residual",
    "rectifier": "channel",
    "batch_size": 1,
    "holdout": 0.5,
}
GRID: dict[str, Any] = {
    "schedule": "#.#..#..#",
    "basis": "residual",
    "timesteps": "auto",
    "rectifier": "element",
    "batch_size": 4,
}


def calibrated(pipe: DummyPipeline, path: Path | None, prompts: list[str] = PROMPTS, **options: Any) -> Profile:
    return calibrate(pipe, prompts, checkpoint=path, **{**CALL, **options})


@pytest.mark.parametrize(
    ("options", "stride"), [(LOCKSTEP, 1), (BATCHES, 7), (GRID, 19)], ids=["fit", "batches", "grid"]
)
def test_an_interrupted_calibration_continues_where_it_stopped(options: dict[str, Any], stride: int, tmp_path: Path):
    whole = mixture_pipeline()
    plain = calibrated(whole, None, **options)
    expected = untimed(plain).to_bytes()
    assert whole.calls > 8
    # An element-wise rectifier is priced first, after one step that no checkpoint keeps.
    priced = int(options.get("rectifier") == "element")
    interruptions = range(1 + priced, whole.calls + 1, stride)
    for k in interruptions:
        path = tmp_path / f"{k}.pt"
        dying = mixture_pipeline()
        dying.fail_at = k
        with pytest.raises(ConnectionError):
            calibrated(dying, path, **options)
        again = mixture_pipeline()
        found = calibrated(again, path, **options)
        assert untimed(found).to_bytes() == expected
        assert found.provenance.measured["uncached_runs"] == plain.provenance.measured["uncached_runs"]
        assert (dying.calls, again.calls) == (k, whole.calls - (k - 1) + priced)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f"{k}.pt" for k in interruptions)


def test_a_finished_calibration_runs_nothing_and_another_one_only_what_is_new(tmp_path: Path):
    path, pipe = tmp_path / "runs.pt", mixture_pipeline()
    first = calibrated(pipe, path, threshold=0.3)
    runs = pipe.calls
    # The figures of time and cost are those of the runs that were made, whenever that was.
    assert calibrated(pipe, path, threshold=0.3) == first and pipe.calls == runs
    other = calibrated(pipe, path, threshold=0.6)
    assert pipe.calls == runs + 4  # its policy, fit, held-out run and fewer steps; both references are there
    alone = calibrated(mixture_pipeline(), None, threshold=0.6)
    assert other.provenance.measured["uncached_runs"] == alone.provenance.measured["uncached_runs"]


def test_the_sums_of_a_finished_pass_are_not_kept(tmp_path: Path):
    path = tmp_path / "runs.pt"
    calibrated(mixture_pipeline(), path, **BATCHES)
    names = list(torch.load(path, weights_only=True)["results"])
    assert len(names) > 4 and not [name for name in names if " pass " in name or " batch " in name]


def other_weights() -> DummyPipeline:
    """The same configuration, weights a little further trained."""
    pipe = mixture_pipeline()
    pipe.transformer.means += 1e-5
    return pipe


def other_scheduler() -> DummyPipeline:
    pipe = mixture_pipeline()
    pipe.scheduler = type(pipe.scheduler)(shift=3.0)
    return pipe


def other_text_encoder() -> DummyPipeline:
    pipe = mixture_pipeline()
    pipe.text_encoder = torch.nn.Linear(2, 2)
    return pipe


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (mixture_pipeline, {"prompts": [*PROMPTS[:-1], "another of class 1"]}),
        (mixture_pipeline, {"prompts": [*PROMPTS[1::-1], *PROMPTS[2:]]}),
        (mixture_pipeline, {"seed": 6}),
        (mixture_pipeline, {"guidance_scale": 5.5}),
        (mixture_pipeline, {"holdout": 0.5}),
        (mixture_pipeline, {"batch_size": 2}),
        (lambda: mixture_pipeline(seed=1), {}),
        (lambda: mixture_pipeline(named=False), {}),
        (other_weights, {}),
        (other_scheduler, {}),
        (other_text_encoder, {}),
    ],
)
def test_a_checkpoint_of_another_calibration_is_refused(
    make: Callable[[], DummyPipeline], changes: dict[str, Any], tmp_path: Path
):
    path, pipe = tmp_path / "runs.pt", make()
    calibrated(mixture_pipeline(), path, threshold=0.3)
    content = path.read_bytes()
    with pytest.raises(
        CalibrationError, match=r"runs.pt belongs to another calibration .*delete it or name another file"
    ):
        calibrated(pipe, path, **{"threshold": 0.3, **changes})
    assert pipe.calls == 0 and path.read_bytes() == content


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: b"not a checkpoint", lambda data: data[: len(data) // 2], lambda data: data[:-20]],
    ids=["empty", "text", "half", "cut"],
)
def test_a_damaged_checkpoint_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path):
    path, pipe = tmp_path / "runs.pt", mixture_pipeline()
    calibrated(mixture_pipeline(), path, threshold=0.3)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CalibrationError, match=r"runs.pt cannot be read .*; delete it to start afresh"):
        calibrated(pipe, path, threshold=0.3)
    assert pipe.calls == 0


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path):
    path = tmp_path / "runs.pt"
    parts: dict[str, Any] = {"identity": "x", "results": {"a": 1}}
    for content in (
        [1, 2],
        {"identity": "x"},
        {"results": {}},
        {**parts, "results": [1]},
        parts,
        {**parts, "costs": {}},
    ):
        torch.save(content, path)
        with pytest.raises(CalibrationError, match=r"cannot be read .*; delete it to start afresh"):
            RunStore(path, "x")


def test_a_checkpoint_never_runs_code(tmp_path: Path):
    class Harmful:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"identity": "x", "results": {"a": Harmful()}}, tmp_path / "runs.pt")
    with pytest.raises(CalibrationError, match=r"cannot be read"):
        RunStore(tmp_path / "runs.pt", "x")
    assert not (tmp_path / "harm").exists()


def test_the_store_runs_each_name_once_and_reads_back_what_it_was_given(tmp_path: Path):
    path, runs = tmp_path / "runs.pt", []

    def run() -> Any:
        runs.append(1)
        return {"by step": {(3, "cond"): torch.tensor([0.1], dtype=torch.float64)}, "on": {0: True}, "grid": None}

    store = RunStore(path, "x")
    first = store.get("a", run)
    assert store.get("a", run) is first and len(runs) == 1
    again = RunStore(path, "x")
    assert "a" in again and "b" not in again
    kept = again.get("a", run)
    assert len(runs) == 1 and kept["on"] == {0: True} and kept["grid"] is None
    assert torch.equal(kept["by step"][3, "cond"], first["by step"][3, "cond"])
    again.get("a b", lambda: 1)
    again.get("c", lambda: 2)
    again.drop("a")
    assert [name in again for name in ("a", "a b", "c")] == [False, False, True]
    again.get("d", lambda: 3)
    assert [name in RunStore(path, "x") for name in ("a", "a b", "c", "d")] == [False, False, True, True]


def test_what_was_asked_for_is_paid_for_once_whenever_it_was_made(tmp_path: Path):
    path = tmp_path / "runs.pt"

    def costing(store: RunStore, runs: float, *names: str) -> Callable[[], str]:
        def run() -> str:
            store.charge(Cost(runs, 2 * runs))
            for name in names:
                store.get(name, costing(store, 10.0))
            return "done"

        return run

    store = RunStore(path, "x")
    store.get("whole", costing(store, 1.0, "part", "other part"))
    store.get("unrelated", costing(store, 100.0))
    store.drop("part")
    assert store.spent == Cost(121.0, 242.0)
    again = RunStore(path, "x")
    assert again.spent == Cost()
    for _ in range(2):
        again.get("whole", costing(again, 1000.0))
    assert again.spent == Cost(21.0, 42.0)
    with pytest.raises(ConnectionError):
        again.get("dies", lambda: (again.charge(Cost(5.0, 5.0)), failing()))
    assert again.spent == Cost(21.0, 42.0)


def failing() -> None:
    raise ConnectionError("the machine went away")


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    RunStore(None, "x").get("a", lambda: 1)
    assert list(tmp_path.iterdir()) == []
