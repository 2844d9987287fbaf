"""How much to compute, said as a speed-up, a number of steps, dB or seconds, one or several at a time."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dummy_pipeline import PROMPTS, DummyPipeline, mixture_pipeline, untimed
from ertacache.calibration import planning
from ertacache.calibration.budget import Budget, budgets_of
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.method import Method
from ertacache.calibration.prompts import split_prompts
from ertacache.calibration.search import Found
from ertacache.calibration.target import fewest_steps, reaches, steps_within
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.metrics import lower_bound
from ertacache.profile.profile import Profile

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell", "ignore:this plan")
T = 14
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": 7.0, "seed": 5, "show_progress": False}


def calibrated(pipe: DummyPipeline, **options: Any) -> Any:
    return calibrate(pipe, PROMPTS, **{"effort": "fast", **CALL, **options})


@pytest.mark.parametrize("T", range(2, 61))
def test_a_speed_up_is_a_number_of_steps(T: int):
    for tenths in (11, 15, 20, 25, 30, 40, 50):
        budget, K = Budget(speedup=tenths / 10), 10 * T // tenths
        if T > 2 and K >= 2:
            assert budget.steps(T) == K
            continue
        why = f"leaves {K} of {T} steps, .*; choose {T / 2:g} at most, or use more" if T > 2 else "and a run of 2 steps"
        with pytest.raises(InvalidArgument, match=f"speedup is {tenths / 10}, .*{why}"):
            budget.steps(T)


def test_one_step_has_none_to_spare():
    with pytest.raises(InvalidArgument, match=r"speedup is 2\.0, and a run of 1 step has none to spare; use more"):
        Budget(speedup=2.0).steps(1)
    for name in ("target_psnr", "max_seconds"):
        with pytest.raises(InvalidArgument, match=f"{name} is 30, and a run of 2 steps has none to spare; use more"):
            Budget(**{name: 30}).steps(2)
    with pytest.raises(InvalidArgument, match="compute_steps is 2; choose 2 to 1 of 1 steps"):
        Budget(compute_steps=2).steps(1)


def test_only_measuring_tells_the_steps_of_the_others():
    assert [Budget(**{name: 3.0}).steps(20) for name in ("target_psnr", "max_seconds", "threshold")] == [None] * 3
    assert Budget(compute_steps=7).steps(20) == 7 and Budget().steps(20) is None and Budget().given == {}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"speedup": 1}, r"speedup is 1; choose a number above 1, such as 2\.0"),
    ({"speedup": float("inf")}, "speedup is inf; choose a number above 1"),
    ({"speedup": True}, "speedup is True; choose a number above 1"),
    ({"target_psnr": 0}, "target_psnr is 0; choose dB above 0, such as 30"),
    ({"target_psnr": float("nan")}, "target_psnr is nan; choose dB above 0"),
    ({"max_seconds": -1.5}, r"max_seconds is -1\.5; choose seconds above 0"),
    ({"compute_steps": 1}, "compute_steps is 1; choose a whole number of 2 or more: the first and the last step"),
    ({"speedup": 2, "compute_steps": 5}, "speedup=2 excludes compute_steps=5; give one of them"),
    ({"speedup": 2, "target_psnr": 30}, "target_psnr=30 excludes speedup=2; give one of them"),
    ({"speedup": [2, 3], "max_seconds": 4}, "max_seconds=4 excludes speedup=2; give one of them"),
    ({"speedup": []}, r"speedup is \[\]; give a number, or a list of one number or more"),
    ({"compute_steps": "7"}, "compute_steps is '7'; give a number, or a list"),
    ({"speedup": [2, 2.0]}, r"speedup is \[2, 2\.0\]; give each budget once, and no None among them"),
    ({"compute_steps": [5, None]}, r"compute_steps is \[5, None\]; give each budget once, and no None"),
    ({"compute_steps": [5, 15]}, "compute_steps is 15; choose 2 to 14 of 14 steps"),
    ({"compute_steps": [5, True]}, "compute_steps is True; choose a whole number"),
    ({"speedup": [2, 7.1]}, r"speedup is 7\.1, which leaves 1 of 14 steps, .*; choose 7 at most, or use more steps"),
    ({"speedup": [2, 3], "compute_steps": [5]}, r"speedup=\[2, 3\] excludes compute_steps=\[5\]; give one of them"),
    ({"compute_steps": b"\x05"}, r"compute_steps is b'\\x05'; give a number, or a list"),
    (
        {"compute_steps": np.int64(5)},
        r"compute_steps is np.int64\(5\); .* computed \(of NumPy .*: value.tolist\(\)\)",
    ),
    (
        {"speedup": torch.tensor(2.0)},
        r"speedup is tensor\(2\.\); .*, such as 2\.0 \(of NumPy .*: value.tolist\(\)",
    ),
    ({"speedup": np.array([2.0, 3.0])}, r"speedup is array\(\[2., 3.\]\); choose a number .*value.tolist\(\)"),
    ({"effort": "slow", "speedup": 2}, "effort is 'slow'; choose one of 'fast', 'balanced', 'thorough'"),
    ({"effort": "fast", "speedup": 2, "history": 2}, "effort='fast' searches for what history=2 fixes; give one of"),
    ({"effort": "fast", "threshold": 0.2}, "effort='fast' searches for what threshold=0.2 fixes"),
    ({"effort": "fast", "speedup": 2, "method": "ertacache"}, "effort='fast' searches for what method='ertacache' fix"),
    ({"effort": "fast"}, "say how much to compute: speedup=2.0, compute_steps=K or a schedule"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_kept_is_refused_before_any_run(options: dict[str, Any], message: str):
    pipe = mixture_pipeline()
    with pytest.raises(InvalidArgument, match=message):
        calibrate(pipe, PROMPTS, **CALL, **options)
    assert pipe.calls == 0


def test_a_list_gives_one_budget_each():
    given = dict.fromkeys(("compute_steps", "speedup", "target_psnr", "max_seconds", "threshold"))
    assert budgets_of({**given, "speedup": (2, 3.5)}) == ((Budget(speedup=2), Budget(speedup=3.5)), True)
    assert budgets_of({**given, "compute_steps": [4]}) == ((Budget(compute_steps=4),), True)
    assert budgets_of({**given, "compute_steps": 4}) == ((Budget(compute_steps=4),), False)


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_each_profile_of_a_list_is_that_of_its_own_calibration(effort: str):
    several = calibrated(mixture_pipeline(), speedup=[2, 2.8], effort=effort)
    assert [profile.schedule.K for profile in several] == [7, 5]
    for profile, speedup in zip(several, (2, 2.8), strict=True):
        alone = calibrated(mixture_pipeline(), speedup=speedup, effort=effort)
        assert untimed(profile).to_bytes() == untimed(alone).to_bytes()
    (one,) = calibrated(mixture_pipeline(), compute_steps=[7], effort=effort)
    assert untimed(one).to_bytes() == untimed(several[0]).to_bytes()


@pytest.mark.parametrize("effort", ["balanced", "thorough"])
@pytest.mark.parametrize("batch_size", [None, 1])
def test_two_calibrations_with_one_seed_are_one_to_the_byte(effort: str, batch_size: int | None):
    options: dict[str, Any] = {"speedup": 2.8, "effort": effort, "batch_size": batch_size}
    first, second = (untimed(calibrated(mixture_pipeline(), **options)).to_bytes() for _ in range(2))
    assert first == second


def clocked(monkeypatch: pytest.MonkeyPatch) -> DummyPipeline:
    """A clock of denoiser calls, two a step, and ten for what comes before the loop."""
    pipe, time = mixture_pipeline(), [0.0]
    pipe.transformer.made.pause = lambda: time.__setitem__(0, time[0] + 1)
    for module in ("calibrator", "recorder", "held_out", "first_steps", "target"):
        monkeypatch.setattr(f"ertacache.calibration.{module}.now", lambda: time[0])
    bar = type(pipe).set_progress_bar_config

    def slow(self: Any, **config: Any) -> None:
        time[0] += 10 * bool(config.get("disable"))
        bar(self, **config)

    monkeypatch.setattr(type(pipe), "set_progress_bar_config", slow)
    return pipe


@pytest.mark.parametrize(("seconds", "K"), [(14, 2), (15.9, 2), (16, 3), (25, 7), (37.9, 13), (38, 14), (1000, 14)])
def test_seconds_are_those_of_a_whole_call(seconds: float, K: int, monkeypatch: pytest.MonkeyPatch):
    profile = calibrated(clocked(monkeypatch), max_seconds=seconds)
    assert isinstance(profile, Profile) and profile.schedule.K == K


def test_seconds_that_two_steps_exceed_are_refused(monkeypatch: pytest.MonkeyPatch):
    message = r"max_seconds is 13\.5, and two of 14 steps take 14 s here with .*; give more, all 14 take 38 s"
    with pytest.raises(InvalidArgument, match=message):
        calibrated(clocked(monkeypatch), max_seconds=13.5)


@pytest.mark.parametrize(("seconds", "K"), [(20.0, 9), (12.0, 2), (29.9, 18), (30.0, 20), (99.0, 20)])
def test_seconds_leave_room_for_the_step_at_which_another_denoiser_takes_over(seconds: float, K: int):
    store = SimpleNamespace(get=lambda name, run: {"loop": 19.0, "call": 30.0})
    run: Any = SimpleNamespace(T=20, store=store, reference=SimpleNamespace(boundaries=(7,)))
    assert steps_within(run, seconds) == K


@pytest.mark.parametrize("T", range(2, 30))
def test_the_fewest_steps_are_found_by_bisection(T: int):
    run: Any = SimpleNamespace(T=T, parts=split_prompts(PROMPTS, 0.5, 0.0, 0))

    def candidate(K: int) -> Any:
        values = [20 + K - spread for spread in (0, 1, 2, 3)]
        return SimpleNamespace(psnr=values, errors=[0.0] * 4)

    bounds = {K: lower_bound([20 + K - spread for spread in (0, 1, 2, 3)]) for K in range(2, T)}
    for target in (10.0, 22.5, 30.0, 44.4):
        keep = [K for K, bound in bounds.items() if bound >= target]
        if keep:
            assert fewest_steps(run, target, candidate) == keep[0]
        else:
            message = f"no plan of fewer than {T} steps keeps {target:g} dB on 4 prompts with 95 % confidence; ask"
            with pytest.raises(CalibrationError, match=message):
                fewest_steps(run, target, candidate)


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_a_target_is_kept_by_the_prompts_that_choose(effort: str):
    prompts = [f"prompt {n} of class {n % 4}" for n in range(12)]
    loose, strict = (
        calibrate(mixture_pipeline(), prompts, effort=effort, target_psnr=target, **CALL) for target in (15.0, 32.0)
    )
    assert loose.schedule.K < strict.schedule.K < T
    for profile, target in ((loose, 15.0), (strict, 32.0)):
        rows = profile.provenance.heldout["chosen_on"]["candidates"]
        (row,) = [row for row in rows if row["chosen"]]
        t = 2.3533634  # of three degrees of freedom
        assert row["psnr"]["mean"] - t * row["psnr"]["standard_error"] >= target - 1e-6
    assert math.isfinite(strict.provenance.measured["uncached_runs"])


@pytest.mark.parametrize("options", [{"prompts": PROMPTS[:2]}, {"prompts": PROMPTS[:3]}, {"choose": 0.0}], ids=str)
def test_a_target_that_no_prompts_could_be_seen_to_keep_is_refused_before_any_run(options: dict[str, Any]):
    pipe, given = mixture_pipeline(), {"prompts": PROMPTS, **options}
    chosen = len(given["prompts"]) - 2 if "choose" not in options else 0
    message = rf"target_psnr is 20, and {chosen} prompt\(s\) to choose on give no confidence bound; give 12 prompts"
    with pytest.raises(InvalidArgument, match=message):
        calibrate(pipe, target_psnr=20.0, **CALL, **given)
    assert pipe.calls == 0


def plan(name: str, psnr: list[float], error: float) -> Any:
    return SimpleNamespace(name=name, psnr=psnr, errors=[error] * len(psnr), evidence=[error] * len(psnr))


def test_a_plan_that_is_nearer_but_misses_the_target_gives_way_to_one_that_keeps_it():
    wild, even = plan("wild", [40.0, 20.0, 40.0, 40.0], -4.0), plan("even", [31.0] * 4, -3.0)
    mild, fair = plan("mild", [32.0, 33.0] * 2, -3.2), plan("fair", [31.0, 32.0] * 2, -3.1)
    assert not reaches(wild, 30.0) and all(reaches(one, 30.0) for one in (even, mild, fair))
    kept = planning.keeping(Found(wild, (wild, fair, mild)), 30.0, even)
    assert kept.best is mild and kept.measured == (wild, fair, mild)
    kept = planning.keeping(Found(wild, (wild,)), 30.0, even)
    assert kept.best is even and kept.measured == (even, wild)
    found = Found(mild, (wild, mild))
    assert planning.keeping(found, 30.0, even) is found


def test_the_plan_of_a_target_is_one_that_keeps_it(monkeypatch: pytest.MonkeyPatch):
    def misses(*_: Any) -> Found:
        wild = plan("wild", [40.0, 20.0], -9.0)
        return Found(wild, (wild,))

    even = plan("even", [31.0, 31.0], -3.0)
    monkeypatch.setattr(planning, "_planned", misses)
    monkeypatch.setattr(planning, "evaluate", lambda *_: even)
    monkeypatch.setattr(planning, "corrects", lambda *_: False)
    even.method = None
    parts = split_prompts(PROMPTS, 0.25, 0.25, 0)
    run: Any = SimpleNamespace(T=T, parts=parts, reference=SimpleNamespace(boundaries=()))
    request: Any = SimpleNamespace(effort="balanced", even=lambda _: Method("reuse", "guided", levels=0))
    assert planning.plan(run, request, Budget(target_psnr=30.0)).best is even
