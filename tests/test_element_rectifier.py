"""A rectifier with one coefficient per element: its size is said before the first run, and is its size in the file."""

import logging
import warnings
from typing import Any

import pytest
import torch

from dummy_pipeline import PROMPTS, mixture_pipeline
from ertacache.calibration import element_rectifier
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.element_rectifier import announce_price, with_room
from ertacache.calibration.first_steps import FirstSteps, first_steps
from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.core.history import History
from ertacache.core.predictor import Predictor
from ertacache.core.rectify import Affine
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.profile.profile import Profile, Rectifier
from profile_maker import facts, make, parts_of

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell")

CALL: dict[str, Any] = {"num_inference_steps": 8, "guidance_scale": 4.0}
MASK = "#..#.#.#"
ELEMENTS = 16  # latents [4, 4]


def calibrated(**options: Any) -> Profile:
    arguments = {"schedule": MASK, "basis": "residual", "rectifier": "element", "show_progress": False, **CALL}
    return calibrate(mixture_pipeline(), PROMPTS, **{**arguments, **options})


def stored(profile: Profile) -> dict[str, Any]:
    header = parts_of(profile.to_bytes())[0]
    return {name: (entry["dtype"], entry["shape"]) for name, entry in header.items() if name.startswith("rectifier.")}


@pytest.mark.parametrize(("site", "targets"), [("output", 2), ("guided", 1)])
def test_what_is_said_is_what_is_stored(caplog: pytest.LogCaptureFixture, site: Any, targets: int) -> None:
    caplog.set_level(logging.INFO, element_rectifier.__name__)
    profile = calibrated(site=site)
    bytes_ = 2 * 4 * 4 * targets * ELEMENTS
    said = [record.getMessage() for record in caplog.records if record.name == element_rectifier.__name__]
    assert said == [
        f"an element-wise rectifier takes {bytes_} bytes in float32 (κ and β of {ELEMENTS} elements for {targets} "
        "target(s) at 4 predicted steps)"
    ]
    shape = [4, targets, *profile.provenance.latent_shape]
    assert stored(profile) == {"rectifier.beta": ("F32", shape), "rectifier.kappa": ("F32", shape)}
    assert profile.predictor.coef_shape == ()
    assert len(profile.to_bytes()) < bytes_ + 4000


def test_nothing_is_run_where_it_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four predicted steps of two targets have 2 · 2 · 4 · 2 · elements bytes in float16."""

    def recorded(*_: Any, **__: Any) -> None:
        raise AssertionError("recorded")

    monkeypatch.setattr(element_rectifier, "_ROOM", 32 * ELEMENTS - 1)
    monkeypatch.setattr(Calibrator, "record", recorded)
    message = (
        rf"takes {64 * ELEMENTS} bytes in float32 .* and {32 * ELEMENTS} in float16, where a profile has room for "
        rf"{32 * ELEMENTS - 1}; compute 5 of 8 steps or more, or use rectifier='channel'"
    )
    with pytest.raises(InvalidArgument, match=message):
        calibrated(site="output")
    monkeypatch.setattr(element_rectifier, "_ROOM", 8 * ELEMENTS - 1)
    with pytest.raises(InvalidArgument, match=r"has room for \d+; use rectifier='channel'"):
        calibrated(site="output")


def test_half_precision_is_announced_and_taken_where_the_room_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = calibrated(site="output")
    monkeypatch.setattr(element_rectifier, "_ROOM", 32 * ELEMENTS)
    with pytest.warns(UserWarning, match=rf"it is kept in float16, {32 * ELEMENTS} bytes, which rounds each coeffici"):
        half = calibrated(site="output")
    assert {dtype for dtype, _ in stored(half).values()} == {"F16"}
    assert whole.rectifier and half.rectifier
    assert torch.equal(half.rectifier.kappa, whole.rectifier.kappa.half())
    assert torch.equal(half.rectifier.beta, whole.rectifier.beta.half())
    held, full = (profile.provenance.heldout["psnr"]["mean"] for profile in (half, whole))
    assert held == pytest.approx(full, abs=0.05) and Profile.from_bytes(half.to_bytes()) == half


@pytest.mark.parametrize(
    ("K", "targets", "bytes_", "dtype"),
    [(15, 1, 31457280, torch.float32), (15, 2, 62914560, torch.float32), (10, 2, 83886080, torch.float16)],
)
def test_flux_at_its_full_size(K: int, targets: int, bytes_: int, dtype: torch.dtype) -> None:
    """The figures of docs/profile-format.md: 1024 × 1024, thirty steps, as announced and as stored."""
    shape = (4096, 64)
    seen = FirstSteps(steps=30, outputs={str(n): shape for n in range(targets)}, received=shape)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        price = announce_price(seen, "output", K)
    assert price == bytes_ // (1 if dtype == torch.float32 else 2)
    assert [f"takes {bytes_} bytes" in str(warning.message) for warning in caught] == [True] * (dtype == torch.float16)
    schedule = Schedule.uniform(30, K)
    table = torch.zeros(30, targets, 1, 1).expand(30, targets, 4096, 64)
    assert with_room(Rectifier(table, table), schedule).kappa.dtype == dtype


def test_the_largest_that_float32_has_room_for_makes_a_file() -> None:
    """Two targets at fifteen predicted steps of 4096 × 64: in the file, but under its cap."""
    schedule = Schedule.uniform(30, 15)
    kappa = torch.zeros(30, 2, 4096, 64)
    kappa[list(schedule.predicted_steps)] = torch.linspace(-1, 1, 2 * 4096 * 64).reshape(2, 4096, 64)
    grid = torch.linspace(1, 0, 31)
    here = facts(num_inference_steps=30, latent_shape=(4096, 64))
    profile = make(
        "output", schedule=schedule, base_sigmas=grid, sigmas=grid, provenance=here,
        predictor=Predictor.residual_reuse(schedule, ("cond", "uncond")), rectifier=Rectifier(kappa, kappa / 2),
    )  # fmt: skip
    data = profile.to_bytes()
    assert 62914560 < len(data) < 64 * 2**20
    loaded = Profile.from_bytes(data)
    assert loaded.rectifier is not None and torch.equal(loaded.rectifier.beta, kappa / 2)


def test_a_threshold_is_priced_for_the_most_that_it_may_predict(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, element_rectifier.__name__)
    announce_price(first_steps(mixture_pipeline(), Prompts(tuple(PROMPTS), 0), CALL), "guided", None)
    assert f"takes {8 * 6 * ELEMENTS} bytes in float32" in caplog.text and "at up to 6 predicted steps" in caplog.text


def test_the_pipeline_is_as_it_was_after_its_first_steps() -> None:
    pipe, prompts = mixture_pipeline(), Prompts(tuple(PROMPTS[:2]), 0)
    before = call_pipeline(pipe, prompts, CALL)
    seen = first_steps(pipe, prompts, CALL)
    assert (seen.steps, seen.outputs, seen.received, seen.directed) == (
        8, {"cond": (4, 4), "uncond": (4, 4)}, (4, 4), True
    )  # fmt: skip
    assert torch.equal(call_pipeline(pipe, prompts, CALL), before)


def test_one_correction_apart_is_the_correction_folded_in() -> None:
    """v − (κ v + β) after the prediction, or inside of its coefficients."""
    profile = calibrated(site="guided")
    rectifier = profile.rectifier
    assert rectifier is not None
    folded = profile.predictor.rectified(rectifier.kappa, rectifier.beta)
    i = profile.schedule.predicted_steps[-1]
    x, v, x1 = torch.randn(3, 2, *profile.provenance.latent_shape, generator=torch.Generator().manual_seed(0))
    history = History(1)
    history.push("guided", v, x1)
    plain = profile.predictor.terms(i, "guided")(history, x)
    apart = Affine(rectifier.kappa[i, 0], rectifier.beta[i, 0]).apply(plain)
    torch.testing.assert_close(folded.terms(i, "guided")(history, x), apart)
