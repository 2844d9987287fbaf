"""What `calibrate` does where nothing is said, what overrides what, and that Python and command line agree on it."""

import inspect
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from dummy_pipeline import PROMPTS, DummyPipeline, mixture_pipeline
from ertacache.calibration.budget import Budget
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.candidates import STRENGTHS
from ertacache.calibration.choices import resolve
from ertacache.calibration.defaults import CHOOSE, DEFAULTS, HOLDOUT, METHOD, RIDGE, Choices
from ertacache.calibration.method import Method
from ertacache.cli import app, options
from ertacache.core.schedule import Schedule
from ertacache.profile.profile import Profile

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell")

CALL: dict[str, Any] = {"num_inference_steps": 14, "guidance_scale": 7.0, "seed": 5, "show_progress": False}
WORDS = {field.name for field in fields(Choices)}
FITTED, PAPER = DEFAULTS["fitted"], DEFAULTS["ertacache"]


def chosen(method: str = METHOD, pipe: DummyPipeline | None = None, **given: Any) -> Choices:
    budget = Budget(
        given.pop("compute_steps", None if "threshold" in given else 5), threshold=given.pop("threshold", None)
    )
    return resolve(pipe or mixture_pipeline(), method, budget, given)


def test_the_table_is_what_the_signature_leaves_open():
    parameters = inspect.signature(calibrate).parameters
    assert {name for name in WORDS if parameters[name].default is not None} == set()
    assert tuple(parameters[name].default for name in ("method", "choose", "holdout")) == (METHOD, CHOOSE, HOLDOUT)
    assert parameters["ridge"].default == RIDGE
    assert FITTED == Choices("uniform", "fitted", "guided", 3, "trajectory", "none", "none", "linear")
    assert PAPER == Choices("policy", "residual", "output", None, None, "auto", "channel", "linear")


def test_the_command_line_has_the_defaults_of_python():
    ours, theirs = (
        {name: one.default for name, one in inspect.signature(door).parameters.items()}
        for door in (app.calibrate, calibrate)
    )
    ours |= {name: default for name, (_, default) in options.GROUPS["expert"][1].items()}
    shared = ours.keys() & theirs.keys() & ({"method", "compute_steps", "threshold", "holdout", "seed"} | WORDS)
    assert shared > {"method", "compute_steps", "threshold", "holdout", "seed", "history", "aim"}
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_the_table_needs_no_torch():
    code = "import sys, ertacache.calibration.defaults; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, FITTED),
        ({"method": "ertacache"}, PAPER),
        # How the keywords of before are read: the budget alone is the recommended plan, a basis brings what is its own.
        ({"threshold": 0.3}, Choices("policy", "fitted", "guided", 3, "trajectory", "none", "none", "linear")),
        ({"schedule": "uniform", "basis": "fitted"}, FITTED),
        ({"schedule": "uniform"}, FITTED),
        ({"basis": "residual"}, Choices("uniform", "residual", "output", None, None, "none", "none", "linear")),
        ({"basis": "reuse", "site": "guided"},
         Choices("uniform", "reuse", "guided", None, None, "none", "none", "linear")),
        ({"site": "hidden"}, Choices("uniform", "residual", "hidden", None, None, "none", "none", "linear")),
        ({"history": "auto", "aim": "auto"},
         Choices("uniform", "fitted", "guided", "auto", "auto", "none", "none", "linear")),
        ({"aim": "step", "rectifier": "scalar"},
         Choices("uniform", "fitted", "guided", 3, "step", "none", "scalar", "linear")),
        # timesteps="auto" measures the solver's own grid too, where the trajectory can be had.
        ({"timesteps": "auto"}, Choices("uniform", "fitted", "guided", 3, "auto", "auto", "none", "linear")),
        (
            {"threshold": 0.3, "basis": "residual", "timesteps": "auto", "rectifier": "channel"},
            Choices("policy", "residual", "output", None, None, "auto", "channel", "linear"),
        ),
        ({"method": "ertacache", "timesteps": "none", "rectifier": "none"},
         Choices("policy", "residual", "output", None, None, "none", "none", "linear")),
        ({"method": "ertacache", "basis": "fitted", "timesteps": "none", "rectifier": "none"},
         Choices("policy", "fitted", "guided", 3, "trajectory", "none", "none", "linear")),
        ({"method": "ertacache", "schedule": "uniform", "activation": "sigmoid"},
         Choices("uniform", "residual", "output", None, None, "auto", "channel", "sigmoid")),
        ({"schedule": "#.#.#", "compute_steps": None},
         Choices(Schedule.from_mask("#.#.#"), "fitted", "guided", 3, "trajectory", "none", "none", "linear")),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_given_overrides_the_row(
    given: dict[str, Any], expected: Choices, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ertacache.calibration.choices.BlockStack", lambda *_: None)  # the mixture has no blocks
    assert chosen(**given) == expected
    assert caplog.records == []


def stochastic() -> DummyPipeline:
    pipe = mixture_pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    return pipe


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"site": "output"}, "aim='trajectory' is of site='guided', not site='output'"),
        ({"timesteps": 0.3}, "aim='trajectory' needs the solver's own grid, not timesteps=0.3"),
        ({"rectifier": "channel"}, "aim='trajectory' and rectifier='channel' correct the same error twice"),
        ({"pipe": stochastic()}, "aim='trajectory' inverts a step of the solver, which cannot be done for FlowMatch"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_where_the_trajectory_cannot_be_had_the_log_says_why(
    given: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
):
    assert chosen(**given).aim == "step"
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.message.startswith(reason)
    assert record.message.endswith("each step is fitted instead, as with aim='step'")


def test_a_solver_that_draws_noise_is_calibrated_all_the_same():
    assert calibrated(stochastic(), compute_steps=5).provenance.method["aim"] == "step"


def calibrated(pipe: DummyPipeline, **options: Any) -> Profile:
    return calibrate(pipe, PROMPTS, **{**CALL, **options})


def test_the_default_costs_one_closed_loop():
    """The first steps; fitted prompts: the uncached run and the closed loop; judged ones: uncached, the plan, fewer
    steps and reuse."""
    pipe = mixture_pipeline()
    profile = calibrated(pipe, compute_steps=6, effort="fast")
    assert [len(call["prompt"]) for call in pipe.seen] == [1, 6, 6, 2, 2, 2, 2]
    facts = profile.provenance.method
    assert (facts["basis"], facts["levels"], facts["directions"], facts["aim"]) == ("fitted", 3, 2, "trajectory")
    assert profile.schedule == Schedule.uniform(14, 6) and profile.site == "guided"
    method = Method("fitted", "guided", levels=3, directions=2, ridge=RIDGE, aim="trajectory")
    named = calibrated(mixture_pipeline(), compute_steps=6, method=method)
    for table in ("a", "b", "d"):
        assert (getattr(profile.predictor, table) == getattr(named.predictor, table)).all()


def test_the_papers_method_is_one_word():
    pipe = mixture_pipeline()
    profile = calibrated(pipe, method="ertacache", threshold=0.3)
    facts = profile.provenance.method
    assert (facts["basis"], facts["rectifier"], facts["threshold"]) == ("residual", "channel", 0.3)
    assert profile.predictor.targets == ("cond", "uncond") and facts["strength"] in STRENGTHS
    named = calibrated(mixture_pipeline(), threshold=0.3, basis="residual", timesteps="auto", rectifier="channel")
    assert profile.schedule == named.schedule and (profile.predictor.a == named.predictor.a).all()
