"""A plan fitted to a run on a finer grid, on pipelines whose exact velocity is known."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from benchmark_scripts import ROOT, load
from dummies import GaussianMixture
from dummy_pipeline import DummyPipeline, MixtureModule, label_of, mixture_pipeline, untimed
from ertacache.calibration.assemble import fit
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import Candidate
from ertacache.calibration.deviation import log10_error
from ertacache.calibration.joint import derivatives, played
from ertacache.calibration.method import Method
from ertacache.calibration.outcome import warning
from ertacache.calibration.pipeline_run import Final, run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.calibration.search import grams_of
from ertacache.calibration.target import reaches
from ertacache.calibration.teacher import FineGrid, FineRun, check_teacher, fine_grid
from ertacache.core.run_gram import gram_of
from ertacache.core.schedule import Schedule
from ertacache.errors import CalibrationError, InvalidArgument, UnsupportedPipeline
from ertacache.metrics import figures, psnr
from ertacache.pipelines.solvers import read_grid
from ertacache.profile.profile import Profile
from ertacache.profile.profile_figures import tables
from ertacache.runtime.player import Player
from ertacache.runtime.run import Controller
from ertacache.runtime.run_stats import RunStats
from ertacache_zoo import catalogue
from pipelines import PROMPTS as TEXTS
from video_profiles import wan22

T, FINE, W, SEED = 12, 36, 7.0, 5
PROMPTS = [f"prompt {n} of class {n * 7 % 4}" for n in range(12)]
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": W}
FITTED = Method("fitted", "guided", levels=3, ridge=1e-3, aim="trajectory")
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def calibrated(pipe: DummyPipeline | None = None, **options: Any) -> Profile:
    given = {"method": FITTED, "seed": SEED, "show_progress": False, "teacher_steps": FINE, **CALL, **options}
    return calibrate(pipe or mixture_pipeline(), PROMPTS, **given)


def grid_of(pipe: DummyPipeline, call: dict[str, Any] = CALL, steps: int = FINE) -> FineGrid:
    return fine_grid(pipe, Prompts(tuple(PROMPTS), SEED).first(1), call, steps)


def calibrator(teacher: bool = True, **options: Any) -> Calibrator:
    pipe = mixture_pipeline()
    grid = grid_of(pipe) if teacher else None
    return Calibrator(
        pipe, PROMPTS, **{"choose": 0.2, "judge": 0.2, "seed": SEED, "call": CALL, **options, "teacher": grid}
    )


def run(controller: Controller, prompts: Prompts, call: dict[str, Any] = CALL) -> tuple[Tensor, Tensor]:
    """Final latents and images."""
    final = Final(controller)
    images = run_pipeline(mixture_pipeline(), prompts, final, call)
    return final.latents, images


SCHEDULERS: dict[str, Any] = {
    "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "unipc": lambda: UniPCMultistepScheduler(**FLOW),
    "dpm": lambda: DPMSolverMultistepScheduler(**FLOW),
    "ddim": lambda: DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
    "ddim, leading": lambda: DDIMScheduler(clip_sample=False, timestep_spacing="leading", steps_offset=1),
    "cogvideox": lambda: CogVideoXDDIMScheduler(timestep_spacing="trailing", rescale_betas_zero_snr=True),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, of DPM-Solver
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(("steps", "parts"), [(10, 2), (20, 4), (25, 4)])
def test_the_fine_grid_contains_the_own_one_bit_for_bit(name: str, steps: int, parts: int) -> None:
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(steps)
    own, timesteps = read_grid(scheduler), scheduler.timesteps.clone()
    grid = FineGrid(own, timesteps, parts)
    scheduler.set_timesteps(steps * parts)
    grid.write(scheduler)
    fine = read_grid(scheduler)
    assert len(fine) == grid.steps + 1 == steps * parts + 1
    assert torch.equal(fine[::parts], own) and torch.equal(grid.nodes[::parts], own)
    assert torch.equal(scheduler.timesteps[::parts].double(), timesteps.double())
    by_hand = torch.stack([own.double()[:-1] + n / parts * own.double().diff() for n in range(parts)], dim=1).flatten()
    torch.testing.assert_close(fine[:-1].double(), by_hand, rtol=0, atol=2e-6)


def by_hand(prompts: Prompts) -> Tensor:
    """[T+1, B, 4, 4] latents of a fine run at the nodes of the own grid: Euler with the exact velocity."""
    scheduler = mixture_pipeline().scheduler
    scheduler.set_timesteps(T)
    nodes, timesteps = scheduler.sigmas.clone(), scheduler.timesteps.clone()
    parts = FINE // T
    velocity = GaussianMixture().guided(torch.tensor([label_of(text) for text in prompts.texts]), W)
    generators = [torch.Generator().manual_seed(prompts.seed + n) for n in range(len(prompts.texts))]
    x = torch.cat([torch.randn(1, 4, 4, generator=g, dtype=torch.float64) for g in generators])
    kept = [x]
    for i in range(T):
        inner = [nodes[i].double() + (nodes[i + 1].double() - nodes[i].double()) * n / parts for n in range(parts)]
        ends = torch.stack([*inner, nodes[i + 1].double()]).float()
        for n in range(parts):
            time = timesteps[i] if n == 0 else ends[n] * 1000
            v = velocity(x.flatten(1), float(time) / 1000).view_as(x)
            x = (x.float() + (ends[n + 1] - ends[n]) * v).double()
        kept.append(x)
    return torch.stack(kept)


def test_the_latents_aimed_at_are_those_of_a_fine_run_made_by_hand() -> None:
    found = calibrator()
    latents, expected = found.aimed[0].latents, by_hand(found.parts.fitted)
    torch.testing.assert_close(latents, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(latents[0], found.reference.recordings[0].latents[0])
    assert torch.equal(found.aimed[0].outputs, found.reference.recordings[0].outputs)
    assert latents.shape == found.reference.recordings[0].latents.shape
    final, _ = run(FineRun(grid_of(mixture_pipeline())), found.parts.fitted, {**CALL, "num_inference_steps": FINE})
    assert torch.equal(latents[-1].float(), final)
    for i in (1, T):
        assert torch.equal(found.trajectory(None, 0)(i), latents[i])


def test_batches_change_nothing() -> None:
    whole, single = calibrator(), calibrator(batch_size=1)
    assert len(single.aimed) == len(whole.parts.fitted.texts)
    apart = torch.cat([recording.latents for recording in single.aimed], dim=1)
    torch.testing.assert_close(apart, whole.aimed[0].latents, rtol=1e-5, atol=1e-6)
    method = replace(FITTED, schedule=Schedule.uniform(T, 6))
    for key, weights in whole.solve(method).weights.items():
        torch.testing.assert_close(weights, single.solve(method).weights[key], rtol=1e-4, atol=1e-4)


def test_schedules_are_priced_on_the_latents_that_are_aimed_at() -> None:
    found = calibrator()
    own = found.reference.recordings[0]
    for n, gram in enumerate(grams_of(found).stack):
        directions = None if own.directions is None else own.directions[:, n]
        assert torch.equal(gram, gram_of(found.aimed[0].latents[:, n], own.outputs[:, n], directions))
    assert not torch.equal(grams_of(found).stack, grams_of(calibrator(teacher=False)).stack)


def test_a_joint_refinement_aims_at_the_fine_run() -> None:
    found, method = calibrator(), replace(FITTED, schedule=Schedule.uniform(T, 6))
    solved, name = played(found, method, fit(found, method))
    left = derivatives(found, method, solved, name, ())
    end, aim = found.kept.of(name, 0).latents[-1], found.aimed[0].latents[-1]
    torch.testing.assert_close(left.energy, (end.float() - aim.float()).double().flatten(1).square().sum(1))


def test_the_plan_is_nearer_to_the_fine_run_than_the_uncached_run_is() -> None:
    """At two thirds of the steps, on prompts that nothing was fitted to, by a factor of 10 in the squared deviation."""
    call = {"num_inference_steps": 30, "teacher_steps": 120, "compute_steps": 20}
    teacher = calibrated(**call).provenance.heldout["teacher"]
    assert teacher["latent_log10_error"] < teacher["uncached"]["latent_log10_error"] - 1
    without = calibrated(**{**call, "teacher_steps": None})
    grid = grid_of(mixture_pipeline(), {**CALL, "num_inference_steps": 30}, 120)
    judged = Prompts(tuple(PROMPTS), SEED).part(8, 12)
    fine, _ = run(FineRun(grid), judged, {**CALL, "num_inference_steps": 120})
    latents, _ = run(Player(without, RunStats()), judged, {**CALL, "num_inference_steps": 30})
    assert teacher["latent_log10_error"] < float(log10_error(latents, fine, 4).mean()) - 1


def test_with_every_step_computed_the_plan_is_the_uncached_run() -> None:
    held = calibrated(compute_steps=T).provenance.heldout
    assert held["latent_log10_error"] == -99.0
    assert {name: held["teacher"][name] for name in ("psnr", "ssim", "latent_log10_error")} == held["teacher"][
        "uncached"
    ]
    assert "fewer_steps" not in held


def test_both_distances_are_reported() -> None:
    profile = calibrated(compute_steps=6)
    held, judged = profile.provenance.heldout, Prompts(tuple(PROMPTS), SEED).part(8, 12)
    fine, fine_images = run(FineRun(grid_of(mixture_pipeline())), judged, {**CALL, "num_inference_steps": FINE})
    uncached, images = run(Controller(), judged)
    latents, drawn = run(Player(profile, RunStats()), judged)
    _, fewer = run(Controller(), judged, {**CALL, "num_inference_steps": 6})

    def decibels(one: Tensor, other: Tensor) -> Any:
        return pytest.approx(figures(psnr(one, other).tolist()))

    assert held["teacher"]["steps"] == FINE == profile.provenance.method["teacher_steps"]
    assert held["psnr"] == decibels(drawn, images)
    assert held["teacher"]["psnr"] == decibels(drawn, fine_images)
    assert held["teacher"]["uncached"]["psnr"] == decibels(images, fine_images)
    assert held["fewer_steps"]["psnr"] == decibels(fewer, images)
    assert held["fewer_steps"]["teacher"]["psnr"] == decibels(fewer, fine_images)
    assert held["reuse"]["teacher"].keys() == {"psnr", "ssim"}
    assert held["latent_log10_error"] == pytest.approx(float(log10_error(latents, uncached, 4).mean()))
    assert held["teacher"]["latent_log10_error"] == pytest.approx(float(log10_error(latents, fine, 4).mean()))
    gain = held["teacher"]["psnr"]["mean"] - held["fewer_steps"]["teacher"]["psnr"]["mean"]
    assert held["gain"]["mean"] == pytest.approx(gain)
    line = next(line for line in profile.summary().splitlines() if line.startswith("fine run: "))
    assert re.fullmatch(
        r"fine run: PSNR [\d.]+ ± [\d.]+ dB from the run of 36 steps, the uncached run [\d.]+ ± [\d.]+, "
        r"fewer steps [\d.]+ ± [\d.]+", line
    )  # fmt: skip
    assert f"PSNR {held['teacher']['psnr']['mean']:.1f} ± " in line
    assert " dB over fewer steps from the fine run" in profile.summary()


def test_plans_are_compared_by_their_distance_to_the_fine_run() -> None:
    profile = calibrated(compute_steps=6, method="fitted", history="auto", aim="trajectory")
    rows = profile.provenance.heldout["chosen_on"]["candidates"]
    assert all(row["teacher"].keys() == {"psnr", "ssim", "latent_log10_error"} for row in rows)
    measured = {"psnr": [30.0], "ssim": [1.0], "error": [-2.0]}
    candidate = Candidate(FITTED, profile, {**measured, "teacher_psnr": [40.0], "teacher_error": [-3.0]})
    assert (candidate.errors, candidate.psnr, candidate.deviation) == ([-3.0], [40.0], -3.0)
    pair = {"psnr": [30.0, 30.0], "error": [-2.0, -2.0], "teacher_psnr": [40.0, 40.0], "teacher_error": [-3.0, -3.0]}
    assert reaches(replace(candidate, measured=pair), 39.0)
    del pair["teacher_psnr"], pair["teacher_error"]
    assert not reaches(replace(candidate, measured=pair), 39.0)


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 3}, {"method": "fitted", "history": "auto", "aim": "trajectory"}]
)
def test_what_is_announced_is_what_is_done(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    pipe = mixture_pipeline()
    profile = calibrated(pipe, compute_steps=6, show_progress=True, **options)
    text = capsys.readouterr().err
    found = re.search(r"(\d+) pipeline calls, the work of ([\d.]+) uncached runs", text)
    assert found is not None
    # The grids of both runs are looked at in a call of their own each.
    assert int(found[1]) == len(pipe.seen) - 2
    assert float(found[2]) == pytest.approx(profile.provenance.measured["uncached_runs"], abs=0.051)
    assert profile.provenance.measured["uncached_runs"] > len(PROMPTS) * (1 + FINE / T)


def test_an_interrupted_calibration_goes_on(tmp_path: Path) -> None:
    whole = calibrated(compute_steps=6, batch_size=3)
    pipe = mixture_pipeline()
    pipe.fail_at = 3 + 3 + 2  # the second of three fine runs
    with pytest.raises(ConnectionError):
        calibrated(pipe, compute_steps=6, batch_size=3, checkpoint=tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))
    again = mixture_pipeline()
    profile = calibrated(again, compute_steps=6, batch_size=3, checkpoint=tmp_path)
    assert untimed(profile).to_bytes() == untimed(whole).to_bytes()
    once = mixture_pipeline()
    calibrated(once, compute_steps=6, batch_size=3)
    assert again.calls == once.calls - 5  # the first steps, three uncached runs and one fine run were kept


def test_a_checkpoint_of_another_teacher_is_refused(tmp_path: Path) -> None:
    calibrated(compute_steps=6, checkpoint=tmp_path)
    with pytest.raises(CalibrationError, match="belongs to another calibration"):
        calibrated(compute_steps=6, checkpoint=tmp_path, teacher_steps=2 * T)


def test_in_half_precision_the_latents_keep_their_dtype(flux: Any) -> None:
    flux.to(torch.bfloat16)
    call = {"num_inference_steps": 6, "height": 32, "width": 32}
    texts = (TEXTS * 2)[:3]
    grid = fine_grid(flux, Prompts(tuple(texts[:1]), 0), call, 12)
    found = Calibrator(flux, texts, choose=0.0, judge=0.2, seed=0, call=call, teacher=grid)
    assert found.aimed[0].latents.dtype == found.reference.recordings[0].latents.dtype
    solved = found.solve(Method("fitted", "guided", Schedule.from_mask("#.#.##"), ridge=1e-3, aim="trajectory"))
    assert solved.weights and all(map(math.isfinite, solved.errors))


AIMED = (
    "teacher_steps=36 needs a plan that aims at the trajectory (site 'guided', aim='trajectory', no rectifier, the "
    "solver's own grid); leave one of the two out"
)
MULTIPLE = "give a whole multiple of the call's 12 steps from 24 on, such as 48"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "not whole": ({"teacher_steps": 36.0}, "teacher_steps is 36.0; "),
    "no multiple": ({"teacher_steps": 30}, f"teacher_steps is 30; {MULTIPLE}"),
    "as coarse": ({"teacher_steps": T}, f"teacher_steps is 12; {MULTIPLE}"),
    "aim": ({"method": replace(FITTED, aim="step")}, AIMED),
    "auto": ({"method": "fitted", "aim": "auto"}, AIMED),
    "paper": ({"method": "ertacache"}, AIMED),
    "reuse": ({"method": "fitted", "basis": "residual"}, AIMED),
    "sigmas": ({"sigmas": [1.0, 0.5]}, "sigmas in the call fixes the solver's steps; leave it or teacher_steps out"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_anything_runs(name: str) -> None:
    options, text = REFUSED[name]
    pipe = mixture_pipeline()
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        calibrated(pipe, **{"compute_steps": 6, **options})
    assert pipe.calls == 0


UNSERVED: dict[str, tuple[Any, str]] = {
    "unknown": (
        EulerDiscreteScheduler(),
        "the time grid of EulerDiscreteScheduler cannot be changed: how it follows another grid is not known",
    ),
    "noise": (
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        "the time grid of FlowMatchEulerDiscreteScheduler cannot be changed: it draws noise in every step",
    ),
    "clips": (
        DDIMScheduler(clip_sample=True),
        "DDIMScheduler with this configuration cannot be inverted to aim at it",
    ),
}


@pytest.mark.parametrize("name", UNSERVED)
def test_a_solver_that_cannot_is_refused(name: str) -> None:
    pipe = mixture_pipeline()
    pipe.scheduler, text = UNSERVED[name]
    with pytest.raises(UnsupportedPipeline, match=re.escape(f"{text}; leave teacher_steps out")):
        check_teacher(pipe, CALL, (), FINE, aimed=True)


def test_two_denoisers_are_refused() -> None:
    text = "WanPipeline has 2 denoisers, and on another grid the second takes over at another time; leave teacher_steps"
    pipe = wan22()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UnsupportedPipeline, match=re.escape(text)):
        check_teacher(pipe, {"num_inference_steps": 10}, (), 20, aimed=True)


def test_noise_of_the_call_is_refused() -> None:
    text = "teacher_steps follows the exact trajectory, but eta=0.5 draws noise; use 0"
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        check_teacher(mixture_pipeline(), {**CALL, "eta": 0.5}, (), FINE, aimed=True)


def test_a_pipeline_without_a_step_count_is_refused() -> None:
    class Fixed(DummyPipeline):
        def __call__(self, prompt: Any, generator: Any = (), output_type: str = "pil") -> Any:  # pyright: ignore
            raise NotImplementedError

    pipe = Fixed(MixtureModule(GaussianMixture()), (4, 4), branches=True)
    with pytest.raises(UnsupportedPipeline, match="Fixed takes no num_inference_steps; leave teacher_steps out"):
        check_teacher(pipe, {}, (), FINE, aimed=True)


def test_a_scheduler_that_ends_elsewhere_is_refused() -> None:
    scheduler = CogVideoXDDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    grid = FineGrid(read_grid(scheduler), scheduler.timesteps.clone(), 3)
    scheduler.set_timesteps(150)  # strides of 6 from 6 end at 0, not at the end of the trajectory
    text = "with teacher_steps=150 CogVideoXDDIMScheduler ends its run elsewhere than with 50 steps; use another"
    with pytest.raises(UnsupportedPipeline, match=re.escape(text)):
        grid.write(scheduler)


def test_a_grid_too_fine_for_whole_timesteps_is_refused() -> None:
    scheduler = UniPCMultistepScheduler(**{**FLOW, "flow_shift": 12.0})
    scheduler.set_timesteps(50)
    grid = FineGrid(read_grid(scheduler), scheduler.timesteps.clone(), 8)
    scheduler.set_timesteps(400)
    with pytest.raises(
        UnsupportedPipeline, match=re.escape("teacher_steps=400 is too fine a grid here (the first two")
    ):
        grid.write(scheduler)


def test_a_pipeline_that_makes_other_steps_is_refused() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(T)
    grid = FineGrid(read_grid(scheduler), scheduler.timesteps.clone(), 3)
    text = "the fine run has 12 steps, not teacher_steps=36; leave teacher_steps out"
    with pytest.raises(UnsupportedPipeline, match=re.escape(text)):
        grid.write(scheduler)


def test_guidance_that_follows_the_step_count_is_refused() -> None:
    class Dynamic(DummyPipeline):
        def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
            self,
            prompt: Any,
            num_inference_steps: int = 30,
            guidance_scale: float = 7.0,
            generator: Any = (),
            output_type: str = "pil",
        ) -> tuple[Tensor]:
            weight = guidance_scale * num_inference_steps / 12
            return super().__call__(prompt, num_inference_steps, weight, generator, output_type=output_type)

    pipe = Dynamic(mixture_pipeline().transformer, (4, 4), branches=True)
    text = (
        "the guidance weight at step 0 is 7, and 21 there in the fine run: it follows the number of steps, so that a "
    )
    with pytest.raises(UnsupportedPipeline, match=re.escape(text)):
        _ = Calibrator(pipe, PROMPTS, choose=0.0, judge=0.2, seed=SEED, call=CALL, teacher=grid_of(pipe)).aimed


def test_a_fine_run_that_diverges_is_an_error() -> None:
    class Breaks(DummyPipeline):
        def _guided(self, x: Tensor, t: Tensor, label: Tensor, weight: float) -> Tensor:
            output = super()._guided(x, t, label, weight)
            return output * math.nan if len(self.scheduler.timesteps) > T else output

    pipe = Breaks(mixture_pipeline().transformer, (4, 4), branches=True)
    text = "the fine run of 36 steps ends in NaN or infinity; run the pipeline in a wider dtype, or leave"
    with pytest.raises(CalibrationError, match=text):
        _ = Calibrator(pipe, PROMPTS, choose=0.0, judge=0.2, seed=SEED, call=CALL, teacher=grid_of(pipe)).aimed


def test_the_table_of_the_page_is_that_of_the_result_file() -> None:
    benchmark = load("finer_teacher")
    found = json.loads(benchmark.RESULTS.read_text(encoding="utf-8"))
    assert benchmark.table(found) in (ROOT / "docs" / "finer-teacher.md").read_text(encoding="utf-8")
    assert set(found) == {*catalogue.IMAGE_NAMES, *catalogue.VIDEO_NAMES}
    for model in found.values():
        assert model["header"]["prompts"] >= 24
        assert model["header"]["teacher_steps"] == 4 * model["header"]["T"]


def test_warnings_are_of_the_distance_to_the_fine_run() -> None:
    profile = calibrated(compute_steps=6)

    def with_psnr(uncached: float, fine: float) -> Profile:
        held = {**profile.provenance.heldout, "psnr": {"mean": uncached, "standard_error": 0.5}}
        held["teacher"] = {**held["teacher"], "psnr": {"mean": fine, "standard_error": 0.5}}
        return replace(profile, provenance=replace(profile.provenance, heldout=held))

    assert warning(with_psnr(19.0, 21.0)) is None and "warning" not in with_psnr(19.0, 21.0).summary()
    far = with_psnr(21.0, 19.0)
    assert warning(far) == (
        "this plan's results are far from the fine ones, PSNR 19.0 dB on 4 judged prompt(s) where 20 or more keep the "
        "picture; compute more steps"
    )
    assert "warning: far from the fine results, below 20 dB: compute more steps" in far.summary()


def test_candidates_are_shown_with_what_they_were_compared_by() -> None:
    profile = calibrated(compute_steps=6, method="fitted", history="auto")
    rows = profile.provenance.heldout["chosen_on"]["candidates"]
    table = next(table for table in tables(profile) if table.head[0] == "plan")
    assert [row[3] for row in table.rows] == [f"{row['teacher']['latent_log10_error']:.2f}" for row in rows]
    assert all(row["teacher"]["latent_log10_error"] != row["latent_log10_error"] for row in rows)
