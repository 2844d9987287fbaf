"""An interrupted calibration continues: nothing finished is run again, and the result is the same to the byte."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dummy_pipeline import PROMPTS, DummyPipeline, mixture_pipeline, untimed
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.checkpoint import Cost, RunStore, owned
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.profile.profile import Profile

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell")

CALL: dict[str, Any] = {"num_inference_steps": 9, "guidance_scale": 5.0, "seed": 5, "show_progress": False}
FAST: dict[str, Any] = {"compute_steps": 4, "effort": "fast", "batch_size": 1}
PAPER: dict[str, Any] = {"compute_steps": 4, "method": "ertacache", "timesteps": 0.3}
TRIED: dict[str, Any] = {"schedule": "#.#..#..#", "basis": "fitted", "history": "auto", "batch_size": 4}


def calibrated(pipe: DummyPipeline, path: Path | None, prompts: list[str] = PROMPTS, **options: Any) -> Profile:
    return calibrate(pipe, prompts, checkpoint=path, **{**CALL, **options})


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """When each finished file of a checkpoint was written, and that it is the same file."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


@pytest.mark.parametrize(
    ("options", "stride"), [(FAST, 3), (PAPER, 5), (TRIED, 17)], ids=["lockstep", "paper", "candidates"]
)
def test_an_interrupted_calibration_continues_where_it_stopped(options: dict[str, Any], stride: int, tmp_path: Path):
    whole = mixture_pipeline()
    plain = calibrated(whole, None, **options)
    expected = untimed(plain).to_bytes()
    for k in range(1, whole.calls + 1, stride):
        path = tmp_path / f"{k}"
        dying, again = mixture_pipeline(), mixture_pipeline()
        dying.fail_at = k
        with pytest.raises(ConnectionError):
            calibrated(dying, path, **options)
        finished = state_of(path)
        found = calibrated(again, path, **options)
        assert untimed(found).to_bytes() == expected
        assert found.provenance.measured["uncached_runs"] == plain.provenance.measured["uncached_runs"]
        assert state_of(path).items() >= finished.items()  # nothing finished is written again
        # Nor is it run again: the call that died, and those of the same closed loop, are all that is.
        assert 0 <= dying.calls + again.calls - whole.calls - 1 < len(PROMPTS)
        if options.get("batch_size") is None:
            assert dying.calls + again.calls == whole.calls + 1


@pytest.mark.parametrize("at", [1, 30, 150, 220])
def test_a_killed_calibration_continues_too_and_leaves_nothing_of_the_killed_one(at: int, tmp_path: Path):
    def killed() -> None:
        pipe = mixture_pipeline()
        pipe.transformer.made.pause = lambda: os._exit(9) if len(pipe.transformer.made.sizes) == at else None
        calibrated(pipe, tmp_path / "runs", **FAST)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == 9
    finished = state_of(tmp_path / "runs")
    expected = untimed(calibrated(mixture_pipeline(), None, **FAST))
    assert untimed(calibrated(mixture_pipeline(), tmp_path / "runs", **FAST)).to_bytes() == expected.to_bytes()
    assert state_of(tmp_path / "runs").items() >= finished.items()
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.name.startswith(".")] == []


def test_a_finished_calibration_runs_nothing_and_another_one_only_what_is_new(tmp_path: Path):
    path, pipe = tmp_path / "runs", mixture_pipeline()
    first = calibrated(pipe, path, threshold=0.3)
    runs, files = pipe.calls, state_of(path)
    # The figures of time and cost are those of the runs that were made, whenever that was.
    assert calibrated(pipe, path, threshold=0.3) == first and pipe.calls == runs and state_of(path) == files
    other = calibrated(pipe, path, threshold=0.6)
    assert other.schedule != first.schedule
    assert pipe.calls == runs + 5  # its policy, fit, judged run, fewer steps and reuse; both references are there
    alone = calibrated(mixture_pipeline(), None, threshold=0.6)
    assert other.provenance.measured["uncached_runs"] == alone.provenance.measured["uncached_runs"]


def test_a_recording_lies_there_once_and_a_temporary_one_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    during: list[int] = []
    pipe = mixture_pipeline()
    pipe.transformer.made.pause = lambda: during.append(len(list((tmp_path / "temporary").rglob("*.bin"))))
    calibrated(pipe, None, **FAST)
    assert max(during) == 6 and list((tmp_path / "temporary").iterdir()) == []
    calibrated(mixture_pipeline(), tmp_path / "runs", **FAST)
    sizes = [file.stat().st_size for file in (tmp_path / "runs").glob("*.bin")]
    assert sizes == [(10 + 9 + 9) * 16 * 8] * 6  # latents, outputs and directions of each fitted prompt
    assert list((tmp_path / "temporary").iterdir()) == []


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
    path, pipe = tmp_path / "runs", make()
    calibrated(mixture_pipeline(), path, threshold=0.3)
    content = state_of(path)
    with pytest.raises(
        CalibrationError, match=r"runs belongs to another calibration .*delete it or name another folder"
    ):
        calibrated(pipe, path, **{"threshold": 0.3, **changes})
    assert pipe.calls == 0 and state_of(path) == content


def test_a_checkpoint_in_which_nothing_was_run_is_anyones(tmp_path: Path):
    path = tmp_path / "runs"
    RunStore(path, "refused before its first run")
    whole = calibrated(mixture_pipeline(), path, threshold=0.3)
    pipe = mixture_pipeline()
    assert calibrated(pipe, path, threshold=0.3) == whole and pipe.calls == 0


@pytest.mark.parametrize("file", ["calibration.json", "*.pt", "*.bin"])
@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: b"not a checkpoint", lambda data: data[: len(data) // 2], lambda data: data[:-20]],
    ids=["empty", "text", "half", "cut"],
)
def test_a_damaged_checkpoint_is_refused(damage: Callable[[bytes], bytes], file: str, tmp_path: Path):
    path, pipe = tmp_path / "runs", mixture_pipeline()
    calibrated(mixture_pipeline(), path, threshold=0.3)
    for one in path.glob(file):
        one.write_bytes(damage(one.read_bytes()))
    with pytest.raises(CalibrationError, match=r"runs/.* cannot be read \(\w+\); delete .*runs to start afresh"):
        calibrated(pipe, path, threshold=0.3)
    assert pipe.calls == 0


def test_a_result_that_is_none_is_refused(tmp_path: Path):
    RunStore(tmp_path / "runs", "x").get("a", lambda: 1)
    (path,) = (tmp_path / "runs").glob("*.pt")
    for content in ([1, 2], {"name": "a"}, {"name": "b", "result": 1, "cost": (1.0, 1.0)}, {"name": "a", "result": 1}):
        torch.save(content, path)
        with pytest.raises(CalibrationError, match=r"cannot be read .*; delete .*runs to start afresh"):
            RunStore(tmp_path / "runs", "x").get("a", lambda: 2)


def test_a_recording_that_is_gone_is_refused(tmp_path: Path):
    calibrated(mixture_pipeline(), tmp_path / "runs", **FAST)
    for path in (tmp_path / "runs").glob("*.bin"):
        path.unlink()
    with pytest.raises(CalibrationError, match=r"bin cannot be read \(FileNotFoundError\); delete .*runs to start"):
        calibrated(mixture_pipeline(), tmp_path / "runs", **FAST)


def test_a_checkpoint_never_runs_code(tmp_path: Path):
    class Harmful:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    RunStore(tmp_path / "runs", "x").get("a", lambda: 1)
    (path,) = (tmp_path / "runs").glob("*.pt")
    torch.save({"name": "a", "result": Harmful(), "cost": (0.0, 0.0)}, path)
    with pytest.raises(CalibrationError, match=r"cannot be read"):
        RunStore(tmp_path / "runs", "x").get("a", lambda: 2)
    assert not (tmp_path / "harm").exists()


def test_two_processes_never_share_a_checkpoint(tmp_path: Path):
    pipe = mixture_pipeline()
    with owned(tmp_path / "runs"):
        with pytest.raises(InvalidArgument, match=rf"runs is in use by process {os.getpid()} on .*; wait until it has"):
            calibrated(pipe, tmp_path / "runs", **FAST)
        assert pipe.calls == 0
    calibrated(pipe, tmp_path / "runs", **FAST)
    with owned(tmp_path / "runs"):  # it is free again
        pass


def test_the_store_runs_each_name_once_and_reads_back_what_it_was_given(tmp_path: Path):
    path, runs = tmp_path / "runs", []

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
    again.get("b", lambda: 2)
    assert [name in RunStore(path, "x") for name in ("a", "b", "c")] == [True, True, False]


def test_what_was_asked_for_is_paid_for_once_whenever_it_was_made(tmp_path: Path):
    path = tmp_path / "runs"

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
