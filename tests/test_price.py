"""What a calibration announces is what it does: runs, pipeline calls and bytes, counted at the denoiser itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import ertacache.calibration.job as job
from dummies import LinearDenoiser
from dummy_pipeline import DummyPipeline, linear_pipeline, mixture_pipeline
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.effort import Work
from ertacache.calibration.method import Method
from ertacache.profile.profile import Profile

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell", "ignore:this plan")
T = 14
PROMPTS = [f"prompt {n} of class {n * 7 % 4}" for n in range(12)]
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": 7.0, "show_progress": False}


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Work]]:
    found: list[Work] = []
    original = job.work_of

    def watch(*args: Any) -> Work:
        found.append(original(*args))
        return found[-1]

    monkeypatch.setattr(job, "work_of", watch)
    yield found


def calibrated(pipe: DummyPipeline, **options: Any) -> list[Profile]:
    found = calibrate(pipe, PROMPTS, **CALL, **options)
    return found if isinstance(found, list) else [found]


OPTIONS: dict[str, dict[str, Any]] = {
    "fast": {"compute_steps": 5, "effort": "fast"},
    "balanced": {"speedup": 2, "effort": "balanced"},
    "thorough": {"compute_steps": 6, "effort": "thorough"},
    "fast, three": {"speedup": [2, 3, 4], "effort": "fast"},
    "balanced, two": {"compute_steps": [5, 7]},
    "paper": {"compute_steps": 5, "method": "ertacache", "timesteps": "none", "schedule": "uniform"},
    "measured": {"compute_steps": 5, "history": "auto", "aim": "auto"},
    "strengths": {"compute_steps": 5, "basis": "fitted", "aim": "step", "timesteps": "auto", "rectifier": "scalar"},
    "grids of reuse": {"compute_steps": 5, "basis": "reuse", "timesteps": "auto", "rectifier": "channel"},
    "a threshold": {"threshold": 0.2, "basis": "residual", "rectifier": "scalar"},
    "a schedule": {"schedule": "#.#.#.#.#.#.#.", "aim": "step"},
    "all steps": {"compute_steps": T, "effort": "fast"},
    "a method": {"compute_steps": 5, "method": Method("fitted", "guided", directions=2, ridge=1e-3, aim="trajectory")},
}


@pytest.mark.parametrize("batch_size", [None, 1])
@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_announced_is_what_is_done(name: str, batch_size: int | None, announced: list[Work]):
    pipe, options = mixture_pipeline(), OPTIONS[name]
    profile = calibrated(pipe, batch_size=batch_size, **options)[-1]
    runs = pipe.transformer.made.samples / (2 * T)
    assert profile.provenance.measured["uncached_runs"] == pytest.approx(runs)
    (work,) = announced
    if options.get("effort") == "thorough":  # it stops where nothing is gained any more
        assert pipe.calls <= work.calls and runs <= work.runs + 1e-9
        return
    assert pipe.calls == work.calls
    if "threshold" not in options:  # else K is not known before
        assert work.runs == pytest.approx(runs)
    fitted = 8 if profile.provenance.method["prompts"]["chosen_on"] == 0 else 4
    assert work.bytes == fitted * (T + 1 + T + T) * 16 * 8


def test_a_solver_that_cannot_be_aimed_with_pays_for_every_step(announced: list[Work]):
    pipe = mixture_pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    calibrated(pipe, compute_steps=5, effort="fast")
    assert announced[0].runs == pytest.approx(pipe.transformer.made.samples / (2 * T))


def test_a_time_costs_the_call_that_is_timed(announced: list[Work], monkeypatch: pytest.MonkeyPatch):
    pipe, K = mixture_pipeline(), 5
    for module in ("target", "held_out"):  # a clock of denoiser calls, two a step
        monkeypatch.setattr(f"ertacache.calibration.{module}.now", lambda: float(len(pipe.transformer.made.sizes)))
    (profile,) = calibrated(pipe, max_seconds=2.0 * K, effort="fast")
    assert profile.schedule.K == K and announced[0].calls == pipe.calls
    assert profile.provenance.measured["uncached_runs"] == pytest.approx(pipe.transformer.made.samples / (2 * T))


def test_one_branch_has_fewer_histories_to_compare(announced: list[Work]):
    denoiser = LinearDenoiser(torch.diag(torch.tensor([0.5, -0.8]).double()), torch.tensor([0.3, -0.6]).double())
    for options in ({"history": "auto"}, {"effort": "balanced"}):
        pipe = linear_pipeline(denoiser.A, denoiser.c)
        calibrated(pipe, compute_steps=5, **options)
        assert announced[-1].runs == pytest.approx(pipe.transformer.made.samples / T)
        assert announced[-1].calls == pipe.calls


@pytest.mark.parametrize("batch_size", [None, 1])
def test_the_recommended_plan_costs_one_run_and_its_share(batch_size: int | None):
    pipe, K = mixture_pipeline(), 5
    (profile,) = calibrated(pipe, batch_size=batch_size, compute_steps=K, effort="fast")
    steps = 2 * 1 + 8 * (T + K) + 4 * (T + 3 * K)  # the first steps; fitted; judged: uncached, plan, fewer steps, reuse
    assert pipe.transformer.made.samples == 2 * steps
    assert profile.provenance.measured["uncached_runs"] == pytest.approx(steps / T)


def test_a_further_candidate_costs_its_share():
    runs: list[float] = []
    for count in (1, 2):
        pipe = mixture_pipeline()
        calibrated(pipe, compute_steps=[5, 6][:count], effort="fast")
        runs.append(pipe.transformer.made.samples / 2)
    assert runs[1] - runs[0] == 8 * 6 + 4 * 3 * 6


def test_the_bytes_on_the_disk_are_those_of_the_files(tmp_path: Path, announced: list[Work]):
    calibrated(mixture_pipeline(), checkpoint=tmp_path / "runs", batch_size=1, **OPTIONS["fast"])
    sizes = [path.stat().st_size for path in (tmp_path / "runs").glob("*.bin")]
    assert len(sizes) == 8 and sum(sizes) == announced[0].bytes
