"""The closed loop on an exactly known denoiser: everything it solves equals a calibration done by hand."""

from typing import Any

import pytest
import torch

from by_hand import ByHand, Found
from dummies import LinearDenoiser
from dummy_pipeline import PROMPTS, DummyPipeline, linear_pipeline, mixture_pipeline
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.method import Method
from ertacache.calibration.solved import Solved
from ertacache.core.schedule import Schedule
from ertacache.core.timesteps import adjust

T, W = 14, 7.0
MASK = "#..#.#...#.#.#"
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": W}
LAMBDAS = (0.02, 0.08, 0.15, 0.3, 0.6, 1.2)


def calibrator(pipe: DummyPipeline | None = None, **options: Any) -> Calibrator:
    call = options.pop("call", CALL)
    return Calibrator(pipe or mixture_pipeline(), PROMPTS, choose=0.25, seed=5, call=call, **options)


def by_hand() -> ByHand:
    return ByHand(PROMPTS[:6], 5, T, W, mixture_pipeline().transformer.mixture)


def plan(site: Any = "guided", **choices: Any) -> Method:
    """Residual reuse, or reuse where `residual` is False, with what `choices` add."""
    residual = choices.pop("residual", True)
    basis = "fitted" if choices.get("levels") else "residual" if residual else "reuse"
    return Method(basis, site, **{"schedule": Schedule.from_mask(MASK), "levels": 0, **choices})


def check(solved: Solved, found: Found, tolerance: float = 1e-8) -> None:
    """Everything that was solved, key by key."""
    assert solved.weights.keys() == found.weights.keys()
    assert solved.affine.keys() == found.kappa.keys()
    assert solved.phis.keys() == found.phis.keys()
    same = {"rtol": tolerance, "atol": tolerance}
    for key, weights in found.weights.items():
        torch.testing.assert_close(solved.weights[key], weights, **same)
    for key, kappa in found.kappa.items():
        torch.testing.assert_close(solved.affine[key].kappa, kappa, **same)
        torch.testing.assert_close(solved.affine[key].beta, found.beta[key], **same)
    for i, phi in found.phis.items():
        assert solved.phis[i] == pytest.approx(phi, abs=tolerance)
    if found.phis:
        torch.testing.assert_close(solved.grid, found.grid, **same)


@pytest.mark.parametrize("residual", [True, False])
def test_the_policy_is_algorithm_2(residual: bool):
    pipe = mixture_pipeline()
    run = calibrator(pipe)
    masks = [str(run.policy(plan(residual=residual, threshold=lam))) for lam in LAMBDAS]
    assert masks == [by_hand().threshold(lam, residual) for lam in LAMBDAS]
    assert len(set(masks)) == len(LAMBDAS)  # the thresholds were worth comparing
    assert pipe.calls == 1 + len(LAMBDAS)  # the uncached run is not repeated
    run.policy(plan(residual=residual, threshold=LAMBDAS[0]))
    assert pipe.calls == 1 + len(LAMBDAS)  # nor is a threshold


def test_reuse_and_residual_reuse_decide_differently():
    assert by_hand().threshold(0.08, True) != by_hand().threshold(0.08, False)


def test_the_nearest_threshold_is_that_of_the_nearest_schedule_tried():
    run, hand = calibrator(), by_hand()
    tried: dict[float, int] = {}
    policy = run.policy

    def spy(asked: Method) -> Schedule:
        schedule = policy(asked)
        tried[asked.threshold] = schedule.K
        return schedule

    run.policy = spy
    for K in range(2, T + 1):
        tried.clear()
        threshold, schedule = run.nearest_policy(plan(), K)
        assert str(schedule) == hand.threshold(threshold, True)
        assert abs(schedule.K - K) == min(abs(k - K) for k in tried.values())
        assert abs(schedule.K - K) <= 1  # what this mixture reaches
    # The first threshold tried is a candidate too, and enough where it fits.
    tried.clear()
    K = policy(plan(threshold=0.05)).K
    assert run.nearest_policy(plan(), K) == (0.05, policy(plan(threshold=0.05)))
    assert list(tried) == [0.05]


@pytest.mark.parametrize(("levels", "branches"), [(1, False), (2, False), (3, False), (1, True), (3, True)], ids=str)
def test_the_fit_is_weighted_ridge_toward_residual_reuse(levels: int, branches: bool):
    choices = {"levels": levels, "branches": branches, "ridge": 1e-3}
    check(calibrator().solve(plan(**choices)), by_hand().run(MASK, **choices))


def test_the_fit_of_each_call_uses_its_own_history():
    choices: dict[str, Any] = {"levels": 2, "ridge": 1e-3}
    found = by_hand().run(MASK, targets=("cond", "uncond"), **choices)
    assert {target for _, target in found.weights} == {"cond", "uncond"}
    check(calibrator().solve(plan("output", **choices)), found)


@pytest.mark.parametrize("granularity", ["scalar", "channel", "element"])
@pytest.mark.parametrize(("level", "targets"), [("guided", ("guided",)), ("output", ("cond", "uncond"))])
def test_the_rectifier_is_least_squares_along_the_closed_loop(granularity: Any, level: str, targets: Any):
    ridge = 1.0 if granularity == "element" else 0.0
    solved = calibrator().solve(plan(level, rectifier=granularity, rectifier_ridge=ridge))
    found = by_hand().run(MASK, targets=targets, rectifier=granularity)
    shape = {"scalar": (), "channel": (1, 4), "element": (4, 4)}[granularity]
    assert {tuple(affine.kappa.shape) for affine in solved.affine.values()} == {shape}
    check(solved, found)


def test_the_rectifier_corrects_what_the_fit_leaves():
    choices: dict[str, Any] = {"levels": 2, "ridge": 1e-3, "rectifier": "channel"}
    check(calibrator().solve(plan(**choices)), by_hand().run(MASK, **choices))


def test_the_sigmoid_runs_in_the_loop_that_fits_it():
    solved = calibrator().solve(plan("output", rectifier="channel", activation="sigmoid"))
    targets = ("cond", "uncond")
    check(solved, by_hand().run(MASK, targets=targets, rectifier="channel", sigmoid=True))
    straight = calibrator().solve(plan("output", rectifier="channel"))
    assert torch.equal(straight.affine[1, "cond"].kappa, solved.affine[1, "cond"].kappa)  # nothing ran before it
    assert not torch.allclose(straight.affine[2, "cond"].beta, solved.affine[2, "cond"].beta, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize(
    "choices", [{}, {"residual": False}, {"levels": 2, "ridge": 1e-3, "rectifier": "scalar"}], ids=str
)
def test_phi_is_eq_13_on_the_new_grid(strength: float, choices: dict[str, Any]):
    run = calibrator()
    solved = run.solve(plan(strength=strength, **choices))
    check(solved, by_hand().run(MASK, strength=strength, **choices))
    base = run.reference.sigmas
    assert solved.grid is not None and torch.equal(solved.grid, adjust(base, plan().schedule, solved.phis, strength))
    assert torch.equal(solved.grid.float()[[0, -1]], base[[0, -1]])
    assert (solved.grid.float().diff() < 0).all() and not torch.equal(solved.grid.float(), base)


def test_phi_of_several_calls_is_one_ratio_of_their_sums():
    choices: dict[str, Any] = {"levels": 1, "ridge": 1e-3, "strength": 0.5}
    check(calibrator().solve(plan("output", **choices)), by_hand().run(MASK, targets=("cond", "uncond"), **choices))


def test_plain_reuse_has_phi_0_right_after_a_computed_step():
    solved = calibrator().solve(plan(residual=False, strength=1.0))
    assert [i for i, phi in solved.phis.items() if phi == 0.0 and MASK[i - 1] == "#"] == [1, 4, 6, 10, 12]


def test_a_rectified_linear_denoiser_is_exact():
    """v = A x with A = diag(a): a reused output is off by a factor per channel, which the rectifier finds."""
    a = torch.tensor([0.5, -0.8], dtype=torch.float64)
    denoiser = LinearDenoiser(torch.diag(a), torch.zeros(2, dtype=torch.float64))
    run = calibrator(linear_pipeline(denoiser.A, denoiser.c), call={"num_inference_steps": T})
    solved = run.solve(plan(residual=False, rectifier="channel"))
    sigmas = run.reference.sigmas.double()
    for i in plan().schedule.predicted_steps:
        grown = denoiser.propagator(sigmas, plan().schedule.last_computed(i), i).diagonal()
        torch.testing.assert_close(solved.affine[i, "guided"].kappa, 1 - grown, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(solved.affine[i, "guided"].beta, torch.zeros_like(a), rtol=0, atol=1e-6)


CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "fit": ("guided", {"levels": 3, "ridge": 1e-3}),
    "directions": ("guided", {"levels": 3, "directions": 2, "ridge": 1e-3, "aim": "trajectory"}),
    "branches": ("guided", {"levels": 2, "branches": True, "ridge": 1e-3}),
    "fit of the calls": ("output", {"levels": 2, "ridge": 1e-3}),
    "rectifier": ("guided", {"rectifier": "channel"}),
    "element": ("output", {"rectifier": "element", "rectifier_ridge": 1.0}),
    "sigmoid": ("output", {"rectifier": "channel", "activation": "sigmoid"}),
    "grid": ("guided", {"strength": 0.5}),
    "grid of the calls": ("output", {"levels": 1, "ridge": 1e-3, "strength": 0.5}),
    "all": ("guided", {"levels": 2, "ridge": 1e-3, "rectifier": "channel", "strength": 0.5}),
}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", CHOICES)
def test_one_pass_in_lockstep_is_one_batch(name: str, size: int):
    """Six prompts in one call, or in up to six: the same sums, in one pipeline call each."""
    site, choices = CHOICES[name]
    asked, whole, pipe = plan(site, **choices), calibrator(), mixture_pipeline()
    run = calibrator(pipe, batch_size=size)
    assert len(run.reference.recordings) == -(-6 // size)
    before = pipe.calls
    found, expected = run.solve(asked), whole.solve(asked)
    assert pipe.calls - before == -(-6 // size)
    check(found, Found(torch.zeros(0), expected.grid, *tables(expected)), 1e-9)
    assert found.errors == pytest.approx(expected.errors, abs=1e-5)  # of float32 latents


def tables(solved: Solved) -> Any:
    kappa = {key: affine.kappa for key, affine in solved.affine.items()}
    beta = {key: affine.beta for key, affine in solved.affine.items()}
    return solved.weights, kappa, beta, solved.phis


def test_no_two_plans_share_a_stored_result():
    pipe = mixture_pipeline()
    run = calibrator(pipe)
    sigmas = run.reference.sigmas
    moved = sigmas.clone()
    moved[3] = moved[3] - 1e-6
    plans = [
        plan(levels=1),
        plan(levels=1, grid=tuple(sigmas.tolist())),
        plan(levels=1, grid=tuple(moved.tolist())),
        plan(levels=2),
        plan(levels=1, branches=True),
        plan(levels=1, ridge=1e-9),
        plan(residual=False),
        plan(),
        plan("output", levels=1),
        plan(levels=1, directions=1),
        plan(levels=1, aim="trajectory"),
        plan(levels=1, schedule=Schedule.from_mask("#.#..#...#.#.#")),
        plan(levels=1, strength=0.1),
        plan(levels=1, rectifier="scalar"),
        plan(levels=1, rectifier="channel"),
        plan(levels=1, rectifier="channel", rectifier_ridge=0.1),
        plan(levels=1, rectifier="channel", activation="sigmoid"),
        plan(schedule=None, threshold=0.1),
        plan(schedule=None, threshold=0.1 + 1e-12),
    ]
    for n, asked in enumerate(plans):
        run.solve(asked)
        assert pipe.calls == 2 + n
    for asked in plans:
        run.solve(asked)
    assert pipe.calls == 1 + len(plans)
