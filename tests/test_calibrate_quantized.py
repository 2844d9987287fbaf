"""`calibrate_quantized`, and plans that aim at the full-precision run, on a denoiser that is off by a known line."""

import math
import re
import statistics
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ertacache
from dummies import GaussianMixture
from dummy_pipeline import DummyPipeline, NamedMixtureModule, mixture_pipeline, untimed
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import compared, fitted_candidate
from ertacache.calibration.deviation import log10_error
from ertacache.calibration.full_precision import FullPrecision, full_precision
from ertacache.calibration.method import Correcting, Method
from ertacache.calibration.pipeline_run import Final, run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.calibration.spread import pipeline_hash
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.pipelines.quantizers.quantize import quantized_copy
from ertacache.pipelines.weights import weights_hash
from ertacache.profile.fingerprint import config_hash
from ertacache.profile.profile import Profile
from ertacache.quantization.calibrate import calibrate_quantized, chosen
from ertacache.quantization.corrections import Options, options_of
from ertacache.quantization.forced import forced_sums
from ertacache.runtime.identity import identity_of
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller
from ertacache.runtime.run_stats import RunStats
from pipelines import flux
from quantized_dummy import CALL, PROMPTS, SEED, T, ideal, off_pipeline
from spreading import Pickled

pytestmark = pytest.mark.filterwarnings("ignore:.*steps leave caching little to save", "ignore:.*cannot tell whether")


def corrected(pipe: DummyPipeline | None = None, full: Any = None, **options: Any) -> Profile:
    given = {"seed": SEED, "show_progress": False, **CALL, **options}
    return calibrate_quantized(pipe or off_pipeline(), PROMPTS, reference=full or mixture_pipeline(), **given)


def calibrator(pipe: DummyPipeline, batch_size: int | None = None) -> Calibrator:
    full = full_precision(pipe, mixture_pipeline())
    return Calibrator(
        pipe, PROMPTS, choose=0.2, judge=0.2, seed=SEED, call=CALL, teacher=full, batch_size=batch_size
    )  # fmt: skip


def final(pipe: DummyPipeline, controller: Controller, prompts: Prompts) -> Tensor:
    seen = Final(controller)
    run_pipeline(pipe, prompts, seen, CALL)
    return seen.latents


@pytest.fixture(scope="module")
def affine() -> Profile:
    return corrected(estimator="affine", granularity="channel", fit="teacher-forced")


def test_a_known_gain_and_bias_are_found(affine: Profile):
    table = affine.compensation
    assert table is not None
    wanted = ideal(affine.base_sigmas)
    torch.testing.assert_close(table.gain, wanted.gain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(table.bias, wanted.bias, rtol=1e-4, atol=1e-6)
    assert affine.schedule == Schedule.all_computed(T)


@pytest.mark.parametrize("fit", ["closed-loop", "trajectory"])
def test_the_closed_loops_find_it_too_and_the_run_is_the_exact_one(fit: str):
    profile = corrected(estimator="affine", granularity="channel", fit=fit)
    prompts = Prompts(tuple(PROMPTS[-2:]), SEED + 10)
    exact = final(mixture_pipeline(), Controller(), prompts)
    assert float(log10_error(final(off_pipeline(), Controller(), prompts), exact, 2).max()) > -4
    got = final(off_pipeline(), Player(profile, RunStats()), prompts)
    torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-4)


def test_teacher_forcing_sees_the_error_on_the_exact_latents():
    """The sums of a step are those of calls by hand on the recorded latents; its own latents are the exact ones."""
    made = calibrator(off_pipeline())
    sums, factors = forced_sums(made)
    exact, labels = made.taught[0], torch.tensor([int(text.split()[-1]) for text in made.batches[0].texts])
    pipe = off_pipeline()
    pipe.scheduler.set_timesteps(T)
    for i, one in enumerate(sums):
        t = pipe.scheduler.timesteps[i].expand(len(labels))
        raw = pipe._guided(exact.latents[i], t, labels, CALL["guidance_scale"])
        state = one.state()
        torch.testing.assert_close(state["q"], raw.double().sum((0, 1)), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(state["o"], exact.outputs[i].double().sum((0, 1)), rtol=1e-6, atol=1e-6)
    sigmas = made.reference.sigmas.double()
    assert factors == [(1.0, pytest.approx(float(step), abs=1e-7)) for step in sigmas.diff()]


def test_batches_change_nothing(affine: Profile):
    again = corrected(estimator="affine", granularity="channel", fit="teacher-forced", batch_size=3)
    assert again.compensation is not None and affine.compensation is not None
    torch.testing.assert_close(again.compensation.gain, affine.compensation.gain)


def test_what_runs_is_what_was_announced(capsys: pytest.CaptureFixture[str]):
    pipe, full = off_pipeline(), mixture_pipeline()
    profile = corrected(pipe, full, show_progress=True, batch_size=3)
    said = capsys.readouterr().err
    calls, runs = re.search(r"(\d+) pipeline calls, the work of ([\d.]+) uncached runs", said).groups()  # type: ignore[union-attr]
    assert pipe.calls + full.calls == int(calls)
    assert pipe.transformer.made.samples + full.transformer.made.samples == 2 * round(T * float(runs))
    assert profile.provenance.measured["uncached_runs"] == pytest.approx(float(runs), abs=0.06)


def test_the_profile_says_what_was_compared_and_gained(affine: Profile):
    held, facts = affine.provenance.heldout, affine.provenance
    assert held["correction"]["installed"] and held["correction"]["gain"]["mean"] > 3
    assert [row["name"] for row in held["chosen_on"]["candidates"]][:2] == [
        "none",
        "affine per channel, teacher-forced",
    ]
    assert held["teacher"]["precision"] == "float64" and held["teacher"]["psnr"]["mean"] > 90
    assert held["teacher"]["uncached"]["psnr"]["mean"] < 60
    by_step = held["by_step"]
    assert len(by_step["quantised"]) == len(by_step["profile"]) == T
    assert by_step["profile"][-1] < by_step["quantised"][-1] - 4
    assert facts.method["correcting"]["fit"] == "teacher-forced" and facts.method["reference"] == "float64"
    assert facts.reference_weights.partition(":")[0]
    text = affine.summary()
    assert "correction: affine per channel, teacher-forced, +" in text
    assert "quantised, every step computed" in text and "off the full-precision run after a step:" in text
    assert Profile.from_bytes(affine.to_bytes()) == affine


@pytest.mark.parametrize(
    ("errors", "taken"),
    [
        ([[-1.0, -2.0], [-1.4, -1.8], [-1.7, -2.4]], 2),  # the second correction is better by more than the first
        ([[-1.0, -2.0], [-1.1, -2.2], [-1.0, -2.4]], 1),  # a tie between corrections: the simpler one
        (
            [[-1.0, -2.0], [-1.9, -1.15], [-0.9, -2.0]],
            1,
        ),  # hardly better, and of large spread: no tie with none
        ([[-1.0, -2.0], [-1.0, -2.0], [-0.9, -2.0]], 0),  # none better
        ([[-1.0, -2.0], [-9.0, math.inf], [-1.1, -2.0]], 2),  # one that diverges is not better
        ([[-1.0, -2.0], [math.inf, math.inf]], 0),
        ([[-1.0, -2.0]], 0),
    ],
)
def test_none_is_chosen_only_where_no_correction_is_better(errors: list[list[float]], taken: int):
    tried: Any = [SimpleNamespace(errors=one, deviation=statistics.fmean(one)) for one in errors]
    assert chosen(tried) is tried[taken]


def test_where_nothing_is_off_nothing_is_installed():
    exact = mixture_pipeline()
    full = DummyPipeline(NamedMixtureModule(GaussianMixture(seed=0)), (4, 4), branches=True)
    with pytest.warns(UserWarning, match="no correction is better than none on the prompts that choose"):
        profile = corrected(exact, full)
    assert profile.compensation is None and not profile.provenance.heldout["correction"]["installed"]
    assert "correction: none, since none is the best there is" in profile.summary()


def test_an_interrupted_calibration_goes_on(tmp_path: Path):
    options: dict[str, Any] = {"estimator": "affine", "granularity": "channel", "fit": "trajectory"}
    once, pipe = corrected(**options), off_pipeline()
    pipe.fail_at = 4
    with pytest.raises(ConnectionError):
        corrected(pipe, checkpoint=tmp_path, **options)
    made = pipe.calls
    again = off_pipeline()
    assert untimed(corrected(again, checkpoint=tmp_path, **options)) == untimed(once)
    fresh = off_pipeline()
    corrected(fresh, **options)
    assert again.calls == fresh.calls - (made - 1)
    with pytest.raises(CalibrationError, match="belongs to another calibration"):
        other = mixture_pipeline(seed=1)
        other.transformer.mixture = GaussianMixture(seed=0)
        corrected(full=other, checkpoint=tmp_path, **options)


def test_both_errors_together_are_better_undone_at_once():
    """A cached plan fitted to the full-precision trajectory, beside one fitted to the quantised run."""
    full = full_precision(off_pipeline(), mixture_pipeline())
    plan: dict[str, Any] = {
        "method": Method("fitted", "guided", Schedule.from_mask("#.#.#.##" + "#" * 4), ridge=1e-3, aim="trajectory"),
        "seed": SEED, "show_progress": False, "num_inference_steps": 12, "guidance_scale": CALL["guidance_scale"],
    }  # fmt: skip
    at_once = calibrate(off_pipeline(), PROMPTS, reference=full.pipe, **plan)
    own = calibrate(off_pipeline(), PROMPTS, **plan)
    held = at_once.provenance.heldout
    assert held["teacher"]["precision"] == "float64" and "correcting" not in at_once.provenance.method
    prompts = Prompts(tuple(PROMPTS[-4:]), SEED + 8)
    call = {"num_inference_steps": 12, "guidance_scale": CALL["guidance_scale"]}

    def off(pipe: DummyPipeline, controller: Controller) -> Tensor:
        seen = Final(controller)
        run_pipeline(pipe, prompts, seen, call)
        return seen.latents

    exact = off(mixture_pipeline(), Controller())
    errors = [
        float(log10_error(off(off_pipeline(), Player(profile, RunStats())), exact, 4).mean())
        for profile in (at_once, own)
    ]
    assert errors[0] < errors[1]
    assert errors[0] == pytest.approx(held["teacher"]["latent_log10_error"], abs=1e-4)


def test_computed_steps_of_a_cached_plan_are_corrected_along_with_it():
    """The run under the profile is that of the closed loop which fitted corrections and predictions in one pass."""
    made = calibrator(off_pipeline())
    how = Correcting("affine", "channel", "trajectory")
    plan = Method("fitted", "guided", Schedule.from_mask("#.##.#"), ridge=1e-3, aim="trajectory", correcting=how)
    found = compared(made, fitted_candidate(made, plan))
    table = found.profile.compensation
    assert table is not None and [table.is_identity(i) for i in range(T)] == [False, True, False, False, True, False]
    again = final(off_pipeline(), Player(found.profile, RunStats()), made.batches[0])
    exact = final(mixture_pipeline(), Controller(), made.batches[0])
    assert log10_error(again, exact, 4).tolist() == pytest.approx(found.fitted, abs=1e-3)
    without = fitted_candidate(made, Method(**{**vars(plan), "correcting": None}))
    assert without.profile.compensation is None and without.errors != found.fitted


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "estimator": (
        {"estimator": "mean"},
        "estimator is 'mean'; choose one of auto, bias, gain, ptqd-gain, ptqd, affine",
    ),
    "granularity": ({"granularity": "element"}, "granularity is 'element'; choose one of auto, scalar, channel"),
    "fit": ({"fit": "both"}, "fit is 'both'; choose one of auto, teacher-forced, closed-loop, trajectory"),
    "reference": ({"reference": 3}, "reference is 3; give the pipeline in full precision, or its denoiser"),
    "names": ({"reference": {"unet": nn.Linear(1, 1)}}, "reference has {'unet': 'Linear'}; give one denoiser for each"),
    "no module": ({"reference": {"transformer": None}}, "reference has {'transformer': 'NoneType'}; give one denoiser"),
    "no names": ({"reference": {0: None, "transformer": nn.Linear(1, 1)}}, "reference has {0: 'NoneType', 'transf"),
    "class": ({"reference": nn.Linear(1, 1)}, "reference has the model_class 'Linear' and the pipeline"),
    "argument": ({"granularty": "scalar"}, "no argument 'granularty'; did you mean"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_a_run(case: str):
    options, message = REFUSED[case]
    pipe = off_pipeline()
    given = {"reference": mixture_pipeline(), **CALL, **options}
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        calibrate_quantized(pipe, PROMPTS, show_progress=False, **given)
    assert pipe.calls == 0


def test_a_reference_that_is_none_is_refused():
    pipe = off_pipeline()
    with pytest.raises(InvalidArgument, match="reference is the very NamedMixtureModule that the pipeline runs"):
        full_precision(pipe, pipe)
    with pytest.raises(InvalidArgument, match="reference is the very NamedMixtureModule"):
        full_precision(pipe, pipe.transformer)
    compiled = off_pipeline()
    compiled.transformer = torch.compile(pipe.transformer, backend="eager")
    with pytest.raises(InvalidArgument, match="reference is the very NamedMixtureModule"):
        full_precision(pipe, compiled)
    other = mixture_pipeline()
    other.transformer.config["dim"] = 99
    with pytest.raises(InvalidArgument, match=r"reference has the model_config .* and the pipeline"):
        full_precision(pipe, other)
    with pytest.raises(InvalidArgument, match="2 prompts leave none to choose a correction on; give 3 or more"):
        calibrate_quantized(pipe, PROMPTS[:2], reference=mixture_pipeline(), show_progress=False, **CALL)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"inputs": 5}, "inputs is 5; give a list of one dictionary per prompt"),
        ({"inputs": "abc"}, "inputs is 'abc'; give a list of one dictionary per prompt"),
        ({"checkpoint": 5}, "checkpoint is 5; name a folder, which is made if it is missing"),
        ({"checkpoint": b"x"}, "checkpoint is b'x'; name a folder, which is made if it is missing"),
        ({"checkpoint": ["a"]}, r"checkpoint is \['a'\]; name a folder, which is made if it is missing"),
        ({"choose": 0}, "choose is 0; choose a share between 0 and 1"),
        ({"holdout": 1.0}, "holdout is 1.0; choose a share between 0 and 1"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_the_work(bad: dict[str, Any], message: str):
    pipe, full = off_pipeline(), mixture_pipeline()
    with pytest.raises(InvalidArgument, match=message):
        calibrate_quantized(pipe, PROMPTS, reference=full, show_progress=False, **CALL, **bad)
    assert pipe.calls == full.calls == 0


def test_a_denoiser_alone_runs_in_a_copy_of_the_pipeline():
    pipe, module = off_pipeline(), mixture_pipeline().transformer
    for reference in (module, {"transformer": module}):
        full = full_precision(pipe, reference)
        assert isinstance(full, FullPrecision) and full.pipe is not pipe and full.pipe.transformer is module
        assert full.pipe.scheduler is not pipe.scheduler


def test_other_noise_and_other_shapes_are_refused():
    full = mixture_pipeline()
    full.start = 0
    full.latent_shape = (2, 8)
    with pytest.raises(InvalidArgument, match=r"the reference has latents \[2, 8\] and the pipeline \[4, 4\]"):
        corrected(full=full)


def test_cached_plans_refuse_what_has_no_common_run():
    given: dict[str, Any] = {"reference": mixture_pipeline(), "show_progress": False, "compute_steps": 3, **CALL}
    with pytest.raises(InvalidArgument, match="reference needs a plan that aims at the trajectory"):
        calibrate(off_pipeline(), PROMPTS, aim="step", **given)
    with pytest.raises(InvalidArgument, match="reference and teacher_steps=12 aim at different runs"):
        calibrate(off_pipeline(), PROMPTS, teacher_steps=12, **given)
    asking, spread = off_pipeline(), Pickled(off_pipeline)
    with pytest.raises(InvalidArgument, match="reference is a model of this one, which cannot be sent to them; leave"):
        calibrate(asking, PROMPTS, map=spread, **given)
    assert spread.units == [] and asking.calls == 0


def test_a_quantiser_is_told_and_its_like_refused_as_a_reference():
    full = flux()
    pipe = quantized_copy(full, "w4a4", skip=("*norm*",))
    with pytest.raises(InvalidArgument, match=r"reference is quantised as the pipeline is, \{.*; give the model"):
        full_precision(pipe, quantized_copy(full, "w4a4", skip=("*norm*",)))
    facts = full_precision(pipe, full.transformer).facts(pipe)
    record = {"by": "ertacache", "scheme": "w4a4", "group": 64, "skip": ["*norm*"]}
    assert facts["quantizer"] == {"denoisers": [record]}
    assert full_precision(pipe, quantized_copy(full, "w8a8")).facts(pipe)["quantizer"] == facts["quantizer"]


def test_a_checkpoint_knows_how_the_model_and_the_reference_are_quantised():
    """Activations leave no trace in the weights, and nor do several grids."""
    full = flux()
    pipes = [quantized_copy(full, scheme) for scheme in ("w4a4", "w4a8", "w4a4x2", "w16a8")]
    pipes.append(quantized_copy(full, "w4a4", skip=("*norm*", "*emb*")))
    assert len({pipeline_hash(pipe) for pipe in (full, *pipes)}) == 6
    exact = config_hash({"pipeline": [identity_of(full), weights_hash(full), None]})
    assert pipeline_hash(full) == pipeline_hash(flux()) == exact
    known = [str(full_precision(pipes[0], one).identity()) for one in (full, *pipes[1:])]
    assert len(set(known)) == 5 and known[0] == str({"reference": [identity_of(full), weights_hash(full)]})


def test_options_are_counted():
    every = options_of("auto", "auto", "auto", affine=True)
    assert (len(every.pairs), every.loops, every.measured) == (8, 4, 8 + 4 + 3)
    one = options_of("gain", "channel", "closed-loop", affine=False)
    assert one == Options((("gain", "channel"),), ("closed-loop",), ()) and (one.loops, one.measured) == (1, 1)
    assert options_of("auto", "scalar", "auto", affine=False).fits == ("teacher-forced", "closed-loop")
    with pytest.raises(InvalidArgument, match="fit='trajectory' needs a solver that can be inverted; use"):
        options_of("bias", "channel", "trajectory", affine=False)


def test_it_is_public():
    assert ertacache.calibrate_quantized is calibrate_quantized
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "calibrate_quantized" in dir(ertacache)
