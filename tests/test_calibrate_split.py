"""The measured switch: prices against every order run by hand, what is chosen and judged, and what is refused."""

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from dummy_pipeline import DummyPipeline
from ertacache.calibration.deviation import deviation
from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts, split_prompts
from ertacache.errors import CalibrationError, InvalidArgument, ProfileInvalid, SplitMismatch, UnsupportedPipeline
from ertacache.metrics import figures, psnr
from ertacache.split import SplitProfile, calibrate_split, split
from ertacache.split.prices import LinearSolver, best_block, best_subset, price, switched
from ertacache.split.recorded import SplitRuns
from split_dummies import CALL, PROMPTS, SEED, OffModule, T, linear, mixtures

#: Of diffusers' own: numpy's arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SHARES: dict[str, Any] = {"choose": 0.3, "seed": SEED}
OPTIONS: dict[str, Any] = {**SHARES, "holdout": 0.3, "call": CALL, "show_progress": False}
PARTS = split_prompts(PROMPTS, 0.3, 0.3, SEED)
ORDERS = list(itertools.product((0, 1), repeat=T))


def runs_of(pair: Sequence[DummyPipeline], **more: Any) -> SplitRuns:
    return SplitRuns(pair[0], pair[1], PROMPTS, judge=0.3, call=CALL, **SHARES, **more)


def made(pair: Sequence[Any], models: Sequence[int], prompts: Prompts, *, decode: bool = False) -> Tensor:
    """A split run of prompts, by nothing but `split`."""
    with split(*pair, models=models):
        return call_pipeline(pair[0], prompts, CALL, decode=decode)


def deviations(pair: Sequence[Any], orders: Sequence[Sequence[int]], prompts: Prompts) -> list[float]:
    """What `price` says, of runs."""
    alone = made(pair, [0] * T, prompts)
    return [deviation(made(pair, order, prompts), alone) for order in orders]


def solver_of(runs: SplitRuns) -> LinearSolver:
    return runs.sized(0).solver


def priced(runs: SplitRuns, orders: Sequence[Sequence[int]], probes: Sequence[int]) -> list[float]:
    return price(runs.grams(probes, solver_of(runs)), orders)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_every_switch_of_a_mixture_costs_what_runs_say_where_it_is_a_probe(batch_size: int | None) -> None:
    pair = mixtures()
    orders = [switched(T, s) for s in range(T)]
    exact = deviations(pair, orders, PARTS.fitted)
    runs = runs_of(pair, batch_size=batch_size)
    assert priced(runs, orders, range(T)) == pytest.approx(exact, abs=1e-4)
    assert len({round(one, 3) for one in exact}) > 1
    one = priced(runs, orders, [0])
    assert (one[0], one[-1]) == pytest.approx((exact[0], exact[-1]), abs=1e-4)  # of any model, from one probe


def test_every_order_of_linear_models_that_respond_alike_costs_what_runs_say() -> None:
    pair = linear(like=True)
    orders = [order for order in ORDERS if any(order)]
    assert priced(runs_of(pair), orders, range(T)) == pytest.approx(deviations(pair, orders, PARTS.fitted), abs=2e-3)


def test_the_large_model_alone_costs_nothing() -> None:
    assert priced(runs_of(mixtures()), [[0] * T], [0]) == [-99]


def test_the_best_piece_and_the_best_exchange_by_all_orders() -> None:
    runs = runs_of(linear(like=False))
    grams = runs.grams([0], solver_of(runs))
    for n in range(T + 1):
        orders = [order for order in ORDERS if order.count(0) == n]
        pieces = [order for order in orders if re.fullmatch("1*0*1*", "".join(map(str, order)))]
        assert price(grams, [best_block(grams, n)])[0] == min(price(grams, pieces))
        assert price(grams, [best_subset(grams, n)])[0] == min(price(grams, orders))


SOLVERS: dict[str, Callable[[], Any]] = {
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0),
    "Euler": lambda: diffusers.EulerDiscreteScheduler(),
    "DDIM": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "DPM": lambda: diffusers.DPMSolverMultistepScheduler(),
    "UniPC": lambda: diffusers.UniPCMultistepScheduler(),
    "DEIS": lambda: diffusers.DEISMultistepScheduler(),
    "LMS": lambda: diffusers.LMSDiscreteScheduler(),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_errors_are_carried_on_as_the_solver_itself_does(name: str) -> None:
    torch.manual_seed(0)
    x, outputs, errors = torch.randn(1, 1, 4, 4), torch.randn(T, 1, 1, 4, 4), torch.randn(T, 1, 4, 4)

    def final(outputs: Tensor) -> Tensor:
        scheduler = SOLVERS[name]()
        scheduler.set_timesteps(T)
        at = x
        for t, output in zip(scheduler.timesteps, outputs, strict=True):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(at, t)
            at = scheduler.step(output, t, at, return_dict=False)[0]
        return at[0]

    scheduler = SOLVERS[name]()
    scheduler.set_timesteps(T)
    found = LinearSolver(scheduler, {}).deviations(errors)
    assert torch.allclose(found.sum(0), final(outputs + errors[:, None]) - final(outputs), rtol=1e-3, atol=1e-3)
    alone = torch.zeros_like(errors)
    alone[2] = errors[2]
    assert torch.allclose(found[2], final(outputs + alone[:, None]) - final(outputs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "build",
    [
        lambda: diffusers.DDIMScheduler(clip_sample=True),
        lambda: diffusers.EulerAncestralDiscreteScheduler(),
        lambda: diffusers.DPMSolverMultistepScheduler(thresholding=True),
    ],
    ids=["clips", "draws noise", "thresholds"],
)
def test_a_solver_that_is_not_linear_is_refused(build: Callable[[], Any]) -> None:
    scheduler = build()
    scheduler.set_timesteps(T)
    name = type(scheduler).__name__
    with pytest.raises(UnsupportedPipeline, match=f"the steps of {name} are not linear here: .* use a deterministic"):
        LinearSolver(scheduler, {})


@pytest.fixture(scope="module")
def found() -> tuple[SplitProfile, Sequence[DummyPipeline]]:
    pair = mixtures()
    return calibrate_split(*pair, PROMPTS, cloud_budget=0.5, orders="any", **OPTIONS), pair


def test_the_best_of_those_that_were_run_is_chosen(found: tuple[SplitProfile, Any]) -> None:
    profile, pair = found
    rows = profile.chosen_on["rows"]
    orders = [row["models"] for row in rows]
    assert len(rows) == 3 and all(order.count(0) <= T / 2 for order in orders)
    assert [row["price"] for row in rows] == sorted(row["price"] for row in rows)
    exact = deviations(pair, orders, PARTS.chosen)
    assert [row["latent_log10_error"] for row in rows] == pytest.approx(exact, abs=1e-5)
    assert list(profile.models) == orders[exact.index(min(exact))]
    assert profile.switch is None and profile.cloud_share == 0.5


def test_judged_prompts_say_what_a_run_of_them_says(found: tuple[SplitProfile, Any]) -> None:
    profile, pair = found
    pictures = made(pair, [0] * T, PARTS.judged, decode=True)
    rows = {row["name"]: row for row in profile.judged["rows"]}
    assert list(rows) == [
        "models 111000", "small model alone", "switch 1", "switch 2", "switch 5", "large model, 3 steps",
    ]  # fmt: skip
    for row in rows.values():
        if row["models"]:
            values = psnr(made(pair, row["models"], PARTS.judged, decode=True), pictures).tolist()
        else:
            values = psnr(call_pipeline(pair[0], PARTS.judged, {**CALL, "num_inference_steps": 3}), pictures).tolist()
        assert row["psnr"] == figures(values)
    assert [row["cloud_share"] for row in rows.values()] == pytest.approx(
        [1 / 2, 0, 1 / 6, 1 / 3, 5 / 6, 1 / 2], abs=1e-6
    )
    # 2 branches; matrices of 16 by 64 and of 16 by 16
    steps = {"large": 2 * 2 * 16 * 64, "small": 2 * 2 * 16 * 16}
    assert profile.operations == {"large": 3 * steps["large"], "small": 3 * steps["small"], "large_alone": T * 4096}


def test_the_calls_that_are_announced_are_made(capsys: pytest.CaptureFixture[str]) -> None:
    for options, exact in (({"orders": "any"}, True), ({}, False)):
        large, small = mixtures()
        profile = calibrate_split(
            large, small, PROMPTS, cloud_budget=0.5, **{**OPTIONS, **options, "show_progress": True}
        )
        said = capsys.readouterr().err.splitlines()[0]
        numbers = re.search(r"at most (\d+) pipeline calls, the work of (.*) runs of .* and (.*) of the small", said)
        assert numbers is not None
        calls, most = int(numbers[1]), (float(numbers[2]), float(numbers[3]))
        assert large.calls - 2 == calls if exact else large.calls - 2 < calls  # two are broken off, to know all this
        counted = [pipe.transformer.made.samples / 2 / T for pipe in (large, small)]
        assert counted[0] <= most[0] + 0.05 and counted[1] <= most[1] + 0.05
        sized = 2 / T
        assert profile.made["runs"] == pytest.approx(counted[0] - sized + (counted[1] - sized) / 4, abs=1e-5)
        assert profile.made["prompts"] == [4, 4, 4]


def test_one_seed_one_file_and_a_finished_calibration_runs_nothing(found: Any, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"cloud_budget": 0.5, "orders": "any", **OPTIONS, "checkpoint": tmp_path}
    pair = mixtures()
    assert calibrate_split(*pair, PROMPTS, **asked).to_bytes() == found[0].to_bytes()
    again = mixtures()
    assert calibrate_split(*again, PROMPTS, **asked).to_bytes() == found[0].to_bytes()
    assert again[0].calls == 2 and pair[0].calls > 10
    again[1].transformer.means[0] += 1
    with pytest.raises(CalibrationError, match=r"checkpoint .* belongs to another calibration"):
        calibrate_split(*again, PROMPTS, **asked)


def test_a_target_is_kept_with_as_few_steps_as_can_be() -> None:
    pair = mixtures()
    profile = calibrate_split(*pair, PROMPTS, target_psnr=60, **OPTIONS)
    assert profile.asked == {"target_psnr": 60} and profile.switch == 5
    assert [row["name"] for row in profile.chosen_on["rows"]] == ["switch 2", "switch 4", "switch 5"]
    with pytest.raises(CalibrationError, match="no switch before step 6 keeps 90 dB on 4 prompts with 95 % confidence"):
        calibrate_split(*pair, PROMPTS, target_psnr=90, **OPTIONS)


def test_a_denoiser_alone_and_embeddings_of_any_batch_size_are_the_same(found: Any) -> None:
    large, small = mixtures()
    profile = calibrate_split(
        large, small.transformer, PROMPTS, cloud_budget=0.5, orders="any", batch_size=3, **OPTIONS
    )  # fmt: skip
    assert profile.models == found[0].models
    assert profile.judged["rows"][0]["psnr"]["mean"] == pytest.approx(found[0].judged["rows"][0]["psnr"]["mean"])


def test_a_split_takes_the_profile(found: tuple[SplitProfile, Any], tmp_path: Path) -> None:
    profile, _ = found
    profile.save(tmp_path / "split.json")
    loaded = SplitProfile.load(tmp_path / "split.json")
    assert loaded == profile
    pair = mixtures()
    expected = made(pair, profile.models, PARTS.judged)
    with split(*pair, profile=loaded) as stats:
        assert torch.equal(call_pipeline(pair[0], PARTS.judged, CALL, decode=False), expected)
    assert stats.calls == [6, 6] and stats.outside == 0
    with (
        split(*pair, profile=loaded),
        pytest.raises(InvalidArgument, match="models names 6 steps and the solver"),
    ):
        call_pipeline(pair[0], PARTS.judged, {**CALL, "num_inference_steps": 4}, decode=False)
    with pytest.raises(InvalidArgument, match="the profile says which model makes each step; leave switch and models"):
        split(*pair, profile=loaded, switch=3).__enter__()
    with pytest.raises(InvalidArgument, match="a split profile is of two models and 3 are given"):
        split(*pair, pair[1], profile=loaded).__enter__()
    with pytest.raises(SplitMismatch, match="the large model is OffModule and the split was measured on 'LargeMod"):
        split(mixtures()[1], pair[0], profile=loaded).__enter__()


def test_other_weights_are_a_warning(found: tuple[SplitProfile, Any]) -> None:
    pair = mixtures()
    pair[1].transformer.means.add_(1)
    with (
        pytest.warns(UserWarning, match="the small model has other weights than the one that the split was measured"),
        split(*pair, profile=found[0]),
    ):
        pass


def test_the_summary(found: tuple[SplitProfile, Any]) -> None:
    lines = found[0].summary().splitlines()
    assert lines[0].startswith("111000 of 6: 50% of the large model's operations (1.23e-05 G on its side, 3.07e-06 G")
    assert lines[1].startswith("58.91 ± 0.91 dB to the large model on 4 judged prompts, 10th percentile ")
    assert "small model alone: 38.33 ± 0.40 dB at 0%" in lines
    assert lines[-1] == "large model, 3 steps: 24.03 ± 1.33 dB at 50%"


def refused(large: Any, small: Any, **more: Any) -> Callable[[], Any]:
    given = {"cloud_budget": 0.5, **OPTIONS, **more}
    prompts = given.pop("prompts", PROMPTS)
    return lambda: calibrate_split(large, small, prompts, **given)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no budget": ({"cloud_budget": None}, "neither of cloud_budget and target_psnr is given; give one, as in"),
    "two budgets": ({"target_psnr": 30}, "both of cloud_budget and target_psnr is given"),
    "all of it": ({"cloud_budget": 1}, "cloud_budget is 1; choose the share of the large model's operations, between"),
    "percent": ({"cloud_budget": 40}, "cloud_budget is 40; choose the share"),
    "budget of a text": ({"cloud_budget": "0.4"}, "cloud_budget is '0.4'; choose the share"),
    "no step": ({"cloud_budget": 0.1}, r"cloud_budget is 0.1, which is no whole step of 6; give 0.167 or more, or use"),
    "target": ({"cloud_budget": None, "target_psnr": -1}, "target_psnr is -1; choose dB above 0 to keep"),
    "orders": ({"orders": "all"}, "orders is 'all'; choose 'switch' or 'any'"),
    "tried": ({"tried": 0}, "tried is 0; choose a whole number of 1 or more: orders that are run"),
    "probes": ({"probes": 0.5}, "probes is 0.5; choose a whole number of 1 or more: runs of the small model"),
    "batch": ({"batch_size": 0}, "batch_size is 0; choose a whole number of 1 or more"),
    "share": ({"choose": 0}, "choose is 0; choose a share between 0 and 1"),
    "inputs": ({"inputs": 5}, "inputs is 5; give a list of one dictionary per prompt"),
    "checkpoint": ({"checkpoint": ["a"]}, r"checkpoint is \['a'\]; name a folder, which is made if it is missing"),
    "few prompts": ({"prompts": PROMPTS[:2]}, "2 prompts leave none to choose a switch on; give 3 or more"),
    "argument": ({"guidance": 3}, "no argument 'guidance'"),
    "one step": ({"call": {**CALL, "num_inference_steps": 1}}, r"a run of 1 step\(s\) cannot be split; give it 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_before_the_work(case: str) -> None:
    large, small = mixtures()
    more, message = REFUSED[case]
    with pytest.raises(InvalidArgument, match=message):
        refused(large, small, **more)()
    assert large.calls <= 2 and large.transformer.made.samples <= 4


def test_models_that_do_not_belong_together_are_refused_before_the_work() -> None:
    large, small = mixtures()
    with pytest.raises(InvalidArgument, match="the small model is the very LargeModule that the large one runs"):
        refused(large, large.transformer)()
    large.transformer.config["in_channels"], small.transformer.config["in_channels"] = 4, 8
    with pytest.raises(SplitMismatch, match=r"model 1: denoiser\.in_channels: the large one has 4, the other one 8"):
        refused(large, small)()
    assert large.calls == 0


def test_what_no_operation_is_counted_of_is_refused() -> None:
    large, small = mixtures()
    large.transformer.width = 0
    with pytest.raises(UnsupportedPipeline, match="no operation of a step is counted: torch has no formula"):
        refused(large, small)()


def test_a_small_model_that_diverges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OffModule, "bias", float("nan"))
    with pytest.raises(CalibrationError, match="runs of the small model end in NaN or infinity; run it in a wider"):
        refused(*mixtures())()


def edited(profile: SplitProfile, edit: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(json.dumps({name: getattr(profile, name) for name in vars(profile)}))
    edit(document)
    return replace(profile, **document).to_bytes()


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "model": (lambda d: d["models"].__setitem__(0, 2), r"models: is \[2, .* where up to 4096 numbers 0 or 1 belong"),
    "model of truth": (lambda d: d["models"].__setitem__(0, True), "models: is "),
    "no models": (lambda d: d.update(models=[]), "models: is empty where each step has a model"),
    "many": (lambda d: d.update(models=[0] * 5000), "models: is .* where up to 4096 numbers"),
    "prices": (lambda d: d.update(prices=[0.0]), r"prices: is \[0.0\] where 7 finite numbers belong"),
    "operations": (lambda d: d["operations"].update(large=-1), "operations: holds .*, which no run takes"),
    "no operations": (lambda d: d["operations"].update(large_alone=0), "operations: holds .*, which no run takes"),
    "operation of a text": (lambda d: d["operations"].update(large="x"), "operations.large: is 'x', not a fin"),
    "key": (lambda d: d["judged"].update(hook=1), "judged: 'hook' is unknown in version 1"),
    "row": (lambda d: d["judged"]["rows"].append(3), "judged.rows: holds 3, not an object"),
    "no row": (lambda d: d["judged"].update(rows=[]), "judged.rows: is empty where the split's own row belongs"),
    "figure": (
        lambda d: d["chosen_on"]["rows"][0]["psnr"].update(mean=[]), r"chosen_on.rows.psnr.mean: is \[\], not a finite",
    ),
    "share": (lambda d: d["judged"]["rows"][0].update(cloud_share=None), "judged.rows.cloud_share: is None, not a fin"),
    "name": (lambda d: d["judged"]["rows"][0].update(name="x" * 300), "judged.rows.name: is 'xxx.*, not a text"),
    "deep": (lambda d: d["made"].update(call=[[[[[[[[[[[]]]]]]]]]]]), "made: is .*, deeper or longer than any config"),
    "source": (lambda d: d["made"].pop("small"), "made.small: is None where model and weights belong"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_stranger_wrote_is_refused_by_name(case: str, found: tuple[SplitProfile, Any]) -> None:
    edit, message = HOSTILE[case]
    with pytest.raises(ProfileInvalid, match=message):
        SplitProfile.from_bytes(edited(found[0], edit))


def test_other_bytes_are_refused(found: tuple[SplitProfile, Any]) -> None:
    data = found[0].to_bytes()
    with pytest.raises(ProfileInvalid, match="checksum: is"):
        SplitProfile.from_bytes(data.replace(b"judged", b"Judged", 1))
    with pytest.raises(ProfileInvalid, match="file: has 0 bytes, too few for a header; the file is damaged"):
        SplitProfile.from_bytes(b"")
    with pytest.raises(ProfileInvalid, match="file: is over the cap of 1048576 bytes"):
        SplitProfile.from_bytes(data + b" " * 2**20)
