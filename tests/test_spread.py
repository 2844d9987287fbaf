"""What is spread over other processes is what one process makes, to the byte: calibrations and comparisons."""

import gc
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipelines
from dummy_pipeline import PROMPTS, mixture_pipeline, untimed
from ertacache.baselines.first_block_cache import FirstBlockCache
from ertacache.baselines.t_gate import TGate
from ertacache.baselines.uniform import Uniform
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.spread import Elsewhere, wait_for
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.evaluation.comparison.entrant import Entrant
from ertacache.evaluation.comparison.job import Job
from ertacache.evaluation.comparison.maker import MakerElsewhere
from ertacache.evaluation.comparison.run import run_comparison
from ertacache.profile.profile import Profile
from spreading import Pickled

#: Few judged prompts, which is said.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell"),
    pytest.mark.filterwarnings("ignore:this plan's results are far"),
]

CALL: dict[str, Any] = {"num_inference_steps": 9, "guidance_scale": 5.0, "seed": 5, "show_progress": False}
MANY = [f"prompt {n} of class {n * 7 % 4}" for n in range(48)]
KINDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "search": (PROMPTS, {"compute_steps": 4, "batch_size": 1}),
    "moves": (PROMPTS, {"compute_steps": 4, "batch_size": 2, "effort": "thorough"}),
    "joint": (MANY, {"compute_steps": 4, "batch_size": 16, "effort": "thorough"}),
    "paper": (PROMPTS, {"compute_steps": 4, "method": "ertacache", "timesteps": 0.3, "batch_size": 3}),
    "histories": (PROMPTS, {"schedule": "#.#..#..#", "basis": "fitted", "history": "auto", "batch_size": 4}),
    "target": (MANY, {"target_psnr": 8.0, "batch_size": 16, "effort": "fast"}),
    "teacher": (PROMPTS, {"compute_steps": 4, "teacher_steps": 18, "batch_size": 4}),
    "scales": (PROMPTS, {"compute_steps": 4, "guidance_scales": [3.0, 5.0], "batch_size": 4}),
}


def plain(profile: Profile) -> list[bytes]:
    """Every grid and scale of it, without what the clock said."""
    return [untimed(replace(one, others=())).to_bytes() for one in (profile, *profile.others)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_that_of_one_process_and_so_is_its_cost(kind: str, tmp_path: Path):
    prompts, options = KINDS[kind]
    call = {name: value for name, value in CALL.items() if name != "guidance_scale" or kind != "scales"}
    alone, asking, spread = mixture_pipeline(), mixture_pipeline(), Pickled(mixture_pipeline)
    expected = calibrate(alone, prompts, **call, **options)
    found = calibrate(asking, prompts, **call, **options, map=spread, checkpoint=tmp_path / "runs")
    assert plain(found) == plain(expected)
    assert found.provenance.measured["uncached_runs"] == expected.provenance.measured["uncached_runs"]
    made = [pipe.calls for pipe in spread.pipes]
    assert min(made) > 0 and sum(made) + asking.calls == alone.calls
    calibrate(asking, prompts, **call, **options, map=spread, checkpoint=tmp_path / "runs")
    assert [pipe.calls for pipe in spread.pipes] == made  # all of it was there


def test_without_a_checkpoint_the_runs_meet_in_a_folder_that_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # nobody else makes folders there
    prompts, options = KINDS["joint"]
    options = {**options, "effort": "fast"}
    alone, spread = mixture_pipeline(), Pickled(mixture_pipeline, workers=3)
    expected = calibrate(alone, prompts, **CALL, **options)
    assert plain(calibrate(mixture_pipeline(), prompts, **CALL, **options, map=spread)) == plain(expected)
    gc.collect()
    assert not list(tmp_path.glob("ertacache-*"))
    # All uncached runs, the closed loop, what the plan, fewer steps and reuse make of the prompts that judge.
    assert spread.units == [4, 1, 1, 1, 1]


def test_progress_names_every_run_wherever_it_was_made():
    def told(**options: Any) -> list[str]:
        names: list[str] = []
        run = Calibrator(mixture_pipeline(), PROMPTS, choose=0.25, seed=5, batch_size=2, call=CALL_ONLY, **options)
        run.progress = names.append
        _ = run.reference
        return names

    assert told(spread=Pickled(mixture_pipeline)) == told() == ["uncached run"] * 3


CALL_ONLY = {"num_inference_steps": 9, "guidance_scale": 5.0}


def test_a_process_that_does_not_see_the_folder_says_so(tmp_path: Path):
    elsewhere = Elsewhere(Calibrator, {}, tmp_path / "none" / "calibration.json")
    with pytest.raises(InvalidArgument, match=r"none is not to be seen from .*share: checkpoint="):
        elsewhere(mixture_pipeline())


def test_a_result_that_does_not_come_is_waited_for_and_then_named():
    seen = iter([False, True])
    wait_for(lambda: next(seen), "it")
    with pytest.raises(CalibrationError, match=r"^a\.pt was made on another machine .* after 0 s; mount"):
        wait_for(lambda: False, "a.pt", patience=0.0)


def test_what_a_run_elsewhere_raises_is_raised():
    def failing() -> Any:
        pipe = mixture_pipeline()
        pipe.fail_at = 5
        return pipe

    with pytest.raises(ConnectionError):
        calibrate(mixture_pipeline(), PROMPTS, **CALL, compute_steps=4, map=Pickled(failing))


CALL_4 = {**pipelines.CALL, "num_inference_steps": 4}
JOB = Job(("a red ring", "a cyan cross"), tuple(pipelines.PROMPTS[:2]), CALL_4, "random", seeds=1, samples=1)
ENTRANTS = [Entrant("every other", Uniform()), Entrant("blocks", FirstBlockCache()), Entrant("late", TGate())]


def files(folder: Path, *left_out: str) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name not in left_out}


def test_the_rows_of_a_comparison_are_those_of_one_process(tmp_path: Path):
    asking, spread = pipelines.flux(), Pickled(pipelines.flux)
    run_comparison(pipelines.flux(), ENTRANTS, JOB, tmp_path / "alone", show_progress=False)
    run_comparison(asking, ENTRANTS, JOB, tmp_path / "spread", map=spread, show_progress=False)
    assert spread.units == [3, 2, 6]  # entrants, uncached runs, rows; T-GATE cannot run here
    alone = files(tmp_path / "alone")
    times = {name for name in alone if name == "timings.jsonl" or name.startswith("references/")}
    assert files(tmp_path / "spread", *times) == {name: data for name, data in alone.items() if name not in times}
    assert files(tmp_path / "spread").keys() == alone.keys()
    # Cut off, it goes on with what is left.
    results = tmp_path / "spread" / "results.jsonl"
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:4]))
    run_comparison(asking, ENTRANTS, JOB, tmp_path / "spread", map=spread, show_progress=False)
    assert spread.units[3:] == [3]
    assert files(tmp_path / "spread", *times) == {name: data for name, data in alone.items() if name not in times}


def test_a_comparison_elsewhere_needs_its_folder(tmp_path: Path):
    with pytest.raises(InvalidArgument, match=r"none is not to be seen from .*share: out="):
        MakerElsewhere(JOB, tmp_path / "none", ("psnr",), False)(pipelines.flux())
