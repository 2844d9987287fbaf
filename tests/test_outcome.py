"""What `calibrate` says of a plan and what the profile keeps: quality against fewer steps, time and cost."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dummy_pipeline import PROMPTS, DummyPipeline, mixture_pipeline
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.outcome import warning
from ertacache.profile.profile import Profile

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell")

T = 14
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": 7.0, "seed": 5}


def calibrated(pipe: DummyPipeline, **options: Any) -> Profile:
    effort = {} if options.keys() & {"basis", "aim"} else {"effort": "fast"}
    return calibrate(pipe, PROMPTS, **{"compute_steps": 5, "show_progress": False, **effort, **CALL, **options})


def counting(monkeypatch: pytest.MonkeyPatch) -> DummyPipeline:
    """A pipeline and a clock of its denoiser calls; the first call of every run takes 1000 more."""
    pipe, time = mixture_pipeline(), [0.0]
    velocity = pipe.transformer.mixture.velocity

    def slow(x: Tensor, sigma: float, label: Tensor | None = None) -> Tensor:
        time[0] += 1 + 1000 * (sigma == 1 and label is not None)
        return velocity(x, sigma, label)

    pipe.transformer.mixture.velocity = slow
    for module in ("calibrator", "recorder", "held_out", "first_steps"):
        monkeypatch.setattr(f"ertacache.calibration.{module}.now", lambda: time[0])
    return pipe


@pytest.mark.parametrize("batch_size", [None, 1])
def test_time_and_cost_are_those_of_the_runs_that_were_made(batch_size: int | None, monkeypatch: pytest.MonkeyPatch):
    pipe = counting(monkeypatch)
    profile = calibrated(pipe, batch_size=batch_size, basis="residual", holdout=0.5)
    measured, batches = profile.provenance.measured, 4 if batch_size else 1
    # Two calls a step. Four prompts are held out; the first step, slow to start, counts as any other.
    assert measured["uncached_seconds"] == 2 * T * batches / 4
    assert measured["cached_seconds"] == 2 * 5 * batches / 4
    assert measured["speed_up"] == T / 5
    # Residual reuse has nothing to fit: two steps of one prompt, both uncached runs, the plan, fewer steps and reuse.
    assert measured["uncached_runs"] == pytest.approx(2 / T + 4 + 4 + 3 * 4 * 5 / T)
    assert measured["calibration_seconds"] == 1000 + 4 + batches * (5 * 1000 + 2 * T + 2 * T + 3 * 10)


def test_all_candidates_are_paid_for():
    measured = calibrated(mixture_pipeline(), basis="residual", timesteps="auto").provenance.measured
    # Three of the four strengths take a closed loop, all a held-out run.
    assert measured["uncached_runs"] == pytest.approx(2 / T + 4 * (1 + 3) + 2 * (1 + 4 * 5 / T) + 2 * (1 + 3 * 5 / T))


def test_a_plan_that_loses_is_warned_about(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    with pytest.warns(UserWarning, match=r"this plan loses to 5 solver steps without a cache.*by \d.*; compute more"):
        profile = calibrated(mixture_pipeline(), basis="reuse")
    held = profile.provenance.heldout
    assert held["wins"] is False and held["gain"]["mean"] < 0
    assert f"gain: {held['gain']['mean']:+.1f}" in caplog.text and "warning: loses to fewer steps" in caplog.text


@pytest.mark.parametrize(("mean", "said"), [(19.94, True), (20.0, False)])
def test_a_ruinous_plan_is_warned_about_though_it_beats_fewer_steps(mean: float, said: bool):
    profile = calibrated(mixture_pipeline())
    held = {**profile.provenance.heldout, "psnr": {"mean": mean, "std": 0.0, "standard_error": 0.0}, "wins": True}
    held.pop("confidence")
    ruinous = replace(profile, provenance=replace(profile.provenance, heldout=held))
    text = (
        "this plan's results are far from the uncached ones, PSNR 19.9 dB on 2 judged prompt(s) where 20 or more "
        "keep the picture; compute more steps"
    )
    assert warning(ruinous) == (text if said else None)
    line = "warning: far from the uncached results, below 20 dB: compute more steps"
    assert (line in ruinous.summary()) is said


def test_a_calibration_warns_of_a_ruinous_plan():
    pipe = mixture_pipeline()
    velocity = pipe.transformer.mixture.velocity
    pipe.transformer.mixture.velocity = lambda x, sigma, label=None: (30 * sigma * x).sin() * velocity(x, sigma, label)
    with pytest.warns(UserWarning, match=r"this plan's results are far from the uncached ones, PSNR \d+\.\d dB on 2"):
        calibrated(pipe, compute_steps=2, num_inference_steps=40, aim="step")


def test_a_pipeline_that_cannot_make_fewer_steps_says_so(caplog: pytest.LogCaptureFixture):
    sigmas = [1 - n / T for n in range(T)]
    given = calibrated(mixture_pipeline(), sigmas=sigmas, num_inference_steps=None)
    assert "fewer steps at the same cost are not measured: sigmas in the call fixes the solver's steps" in caplog.text
    assert {"fewer_steps", "gain", "wins"} & given.provenance.heldout.keys() == set()
    assert given.provenance.heldout["psnr"]["mean"] > 0 and given.provenance.measured["speed_up"] > 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            ValueError("distilled for 14 steps"),
            "the call with num_inference_steps=5 failed: DummyPipeline refuses the call: distilled for 14 steps",
        ),
        (None, "num_inference_steps=5 made 14 steps"),
    ],
)
def test_what_the_pipeline_answers_to_fewer_steps_is_the_reason(
    error: Exception | None, reason: str, caplog: pytest.LogCaptureFixture
):
    pipe = mixture_pipeline()
    set_timesteps = type(pipe.scheduler).set_timesteps

    class Stubborn(type(pipe.scheduler)):
        def set_timesteps(self, num_inference_steps: int | None = None, **more: Any) -> None:
            if num_inference_steps != T and error is not None:
                raise error
            set_timesteps(self, T, **more)

    pipe.scheduler = Stubborn(shift=2.0)
    profile = calibrated(pipe, aim="step")
    assert f"fewer steps at the same cost are not measured: {reason}" in caplog.text
    assert {"fewer_steps", "gain", "wins"} & profile.provenance.heldout.keys() == set()


def test_a_machine_that_goes_away_is_no_reason():
    pipe = mixture_pipeline()
    pipe.fail_at = 5
    with pytest.raises(ConnectionError):
        calibrated(pipe)


def test_everything_is_said_on_standard_error_and_in_the_log(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    profile = calibrated(mixture_pipeline(), show_progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [record.message for record in caplog.records]
    # 2/14 + 6 (1 + 5/14) + 2 (1 + 3 · 5/14)
    assert lines[0].startswith(
        "calibrate: 6 prompts to fit, 0 to choose and 2 to judge on; 7 pipeline calls, the work of 12.4 uncached runs "
        "of one prompt: about "
    )
    # 15 latents of 16 float64, 14 outputs and directions, of 6 prompts.
    assert lines[0].endswith(f" and {(15 + 14 + 14) * 16 * 8 * 6 / 1024:.3g} KiB on the disk")
    assert lines[1:] == [f"calibrate: {line}" for line in profile.summary().splitlines()]
    assert any(line.startswith("calibrate: calibration: cost 12.4 uncached runs of one prompt, ") for line in lines)
    assert "calibrate: warning: fewer than 4 judged prompts: no measurement" in lines


def test_nothing_is_shown_where_nothing_shall_be(capsys: pytest.CaptureFixture[str]):
    calibrated(mixture_pipeline())
    assert capsys.readouterr() == ("", "")


def test_four_held_out_prompts_are_a_measurement():
    text = calibrated(mixture_pipeline(), holdout=0.5).summary()
    assert "no measurement" not in text and "on 4 judged prompts" in text


def test_one_held_out_prompt_has_no_spread():
    with pytest.warns(UserWarning, match=r"cost the same, by \d+\.\d\d dB; compute more steps"):
        text = calibrated(mixture_pipeline(), basis="reuse", holdout=0.1).summary()
    assert "gain: -" in text and " ± 0.0" not in text


def test_profiles_without_the_figures_are_not_warned_about():
    profile = calibrated(mixture_pipeline())
    older = replace(profile, provenance=replace(profile.provenance, heldout={}, measured={}))
    assert warning(older) is None
    assert torch.equal(older.predictor.a, profile.predictor.a)
