"""The versions of the profile file: what a changed bit does to the newest, and what is read of the older ones."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pipelines
from dummy_pipeline import PROMPTS, mixture_pipeline
from ertacache.calibration.calibrate import calibrate
from ertacache.core.predictor import LARGEST_COEFFICIENT, Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import ProfileInvalid
from ertacache.profile.profile import Profile, Rectifier
from profile_maker import ADDED, FACTS, HASHES, OLDER, facts, make, older, parts_of, sealed

pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell")


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def smallest() -> Profile:
    """Two steps, one call, one number."""
    schedule = Schedule.from_mask("#.")
    grid = torch.tensor([1.0, 0.5, 0.0])
    here = facts(contexts=["cond"], num_inference_steps=2, guidance_weight=None, call={}, method={}, heldout={})
    reuse = Predictor.plain_reuse(schedule, ["cond"])
    return make("output", schedule=schedule, predictor=reuse, base_sigmas=grid, sigmas=grid, provenance=here)


def test_every_bit_of_a_small_file_counts() -> None:
    data = smallest().to_bytes()
    assert Profile.from_bytes(data) == smallest()
    for bit in range(8 * len(data)):
        with pytest.raises(ProfileInvalid):
            Profile.from_bytes(flipped(data, bit))


@pytest.fixture(scope="module")
def fitted() -> Profile:
    return calibrate(
        mixture_pipeline(), PROMPTS, schedule="#..#.#.##", basis="fitted", aim="step", show_progress=False,
        num_inference_steps=9, guidance_scale=4.0,
    )  # fmt: skip


def test_bits_of_a_fitted_profile_count(fitted: Profile) -> None:
    """Every bit of its coefficients, and one in eleven of all."""
    data = fitted.to_bytes()
    coefficients = 8 * (8 + int.from_bytes(data[:8], "little"))
    for bit in {*range(0, 8 * len(data), 11), *range(coefficients, 8 * len(data))}:
        with pytest.raises(ProfileInvalid):
            Profile.from_bytes(flipped(data, bit))


def test_the_checksum_says_what_to_do() -> None:
    data = make().to_bytes()
    with pytest.raises(
        ProfileInvalid, match=r"p: checksum: is [0-9a-f]{16}\.\.\. and the content has .*download it again"
    ):
        Profile.from_bytes(flipped(data, 8 * len(data) - 1), "p")


def test_the_checksum_is_that_of_the_file_with_zeros_in_its_place() -> None:
    data = make().to_bytes()
    written = parts_of(data)[1]["checksum"]
    assert data.count(written.encode()) == 1
    assert hashlib.sha256(data.replace(written.encode(), b"0" * 64)).hexdigest() == written


@pytest.mark.parametrize("activation", [None, "linear", "sigmoid"])
@pytest.mark.parametrize("version", OLDER)
def test_files_of_older_versions_are_read(tmp_path: Path, version: int, activation: str | None) -> None:
    """Their bytes are those that the releases of that time wrote."""
    if activation is None:
        assert hashlib.sha256(older(version)).hexdigest() == OLDER[version]
    path = tmp_path / "p.safetensors"
    path.write_bytes(older(version, activation))
    loaded = Profile.load(path)
    same = make(activation=activation)
    added = [name for since, names in ADDED.items() if since > version for name in names]
    unknown = {name: type(FACTS[name])() for name in added}
    assert loaded.provenance == replace(same.provenance, **unknown, **(HASHES if version < 4 else {}))
    for name in ("a", "d", "b"):
        assert torch.equal(getattr(loaded.predictor, name), getattr(same.predictor, name))
    if activation:
        assert loaded.rectifier and same.rectifier
        assert torch.equal(loaded.rectifier.kappa, same.rectifier.kappa)
        assert torch.equal(loaded.rectifier.beta, same.rectifier.beta)
    assert loaded == replace(same, provenance=loaded.provenance)
    assert parts_of(loaded.to_bytes())[1]["version"] == 5
    assert Profile.from_bytes(loaded.to_bytes()) == loaded  # with its hashes


def test_older_versions_know_no_later_keys() -> None:
    keys = [(version, key) for since, names in ADDED.items() for key in names for version in range(1, since)]
    assert {(1, "boundaries"), (2, "measured"), (3, "weights")} <= set(keys) and len(keys) == 22
    for version, key in keys:
        header, document, blob = parts_of(older(version))
        document["provenance"][key] = json.loads(json.dumps(FACTS[key]))
        header["__metadata__"]["ertacache"] = json.dumps(document)
        with pytest.raises(ProfileInvalid, match=f"provenance: '{key}' is unknown in version {version}"):
            Profile.from_bytes(sealed(header, blob))


# -- rows --------------------------------------------------------------------------------------------------


def test_only_predicted_steps_have_rows() -> None:
    header = parts_of(make("hidden", "linear").to_bytes())[0]
    shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    assert shapes == {
        "base_sigmas": [6], "sigmas": [6], "predictor.a": [2, 2, 2, 2], "predictor.b": [2, 2], "predictor.d": [2, 2],
        "rectifier.beta": [2, 2, 1, 3], "rectifier.kappa": [2, 2, 1, 3],
    }  # fmt: skip


def test_a_schedule_without_predicted_steps_has_tables_of_no_rows() -> None:
    profile = make(
        schedule=Schedule.all_computed(5), predictor=Predictor.plain_reuse(Schedule.all_computed(5), ["guided"])
    )
    assert parts_of(profile.to_bytes())[0]["predictor.a"]["shape"] == [0, 1, 1, 1]
    loaded = Profile.from_bytes(profile.to_bytes())
    assert loaded == profile and loaded.predictor.a.shape == (5, 1, 1, 1) and not loaded.predictor.a.any()


@pytest.mark.parametrize("half", [False, True])
def test_a_rectifier_that_targets_share_is_stored_once(half: bool) -> None:
    own = make("output", "linear").rectifier
    assert own is not None
    one = Rectifier(own.kappa[:, :1].repeat(1, 2, 1, 1), own.beta, "linear")
    shared = make("output", rectifier=one.half() if half else one)
    header = parts_of(shared.to_bytes())[0]
    assert header["rectifier.kappa"]["shape"] == [2, 1, 1, 3] and header["rectifier.beta"]["shape"] == [2, 2, 1, 3]
    assert header["rectifier.kappa"]["dtype"] == ("F16" if half else "F32")
    loaded = Profile.from_bytes(shared.to_bytes())
    assert loaded == shared and loaded.rectifier and shared.rectifier
    assert torch.equal(loaded.rectifier.kappa, shared.rectifier.kappa)
    assert torch.equal(loaded.rectifier.beta, shared.rectifier.beta)
    assert loaded.rectifier.beta.dtype == (torch.float16 if half else torch.float32)


def test_targets_with_zeros_of_another_sign_are_stored_apart() -> None:
    kappa = torch.zeros(5, 2)
    kappa[1, 1] = -0.0
    profile = make("output", rectifier=Rectifier(kappa, torch.zeros(5, 2)))
    assert parts_of(profile.to_bytes())[0]["rectifier.kappa"]["shape"] == [2, 2]


def test_half_of_a_rectifier_is_off_by_what_the_format_says() -> None:
    kappa = torch.cat([torch.linspace(-3, 3, 1001), torch.logspace(-9, 3, 1001)])[None, None].repeat(5, 1, 1)
    kappa[[0, 2, 4]] = 0
    halved = Rectifier(kappa, kappa).half().kappa.float()
    assert ((halved - kappa).abs() <= torch.maximum(kappa.abs() * 2**-11, torch.tensor(3e-8))).all()


# -- how large coefficients are ----------------------------------------------------------------------------

METHODS = {
    "the paper": {"basis": "residual", "site": "output", "timesteps": 0.3, "rectifier": "channel"},
    "the paper, sigmoid": {"basis": "residual", "site": "output", "rectifier": "channel", "activation": "sigmoid"},
    "reuse, element": {"basis": "reuse", "site": "output", "rectifier": "element"},
    "fitted, output": {"basis": "fitted", "site": "output", "history": 3, "aim": "step"},
    "fitted, four levels": {"basis": "fitted", "history": 4, "aim": "step"},
    "trajectory": {"basis": "fitted", "history": 3, "aim": "trajectory"},
    "fitted, scalar": {"basis": "fitted", "history": 3, "aim": "step", "rectifier": "scalar"},
}


def largest(profile: Profile) -> float:
    tables = [profile.predictor.a, profile.predictor.d, profile.predictor.b]
    tables += [profile.rectifier.kappa, profile.rectifier.beta] if profile.rectifier else []
    return max(float(table.abs().max()) for table in tables)


@pytest.mark.parametrize("name", METHODS)
def test_coefficients_of_every_method_stay_far_below_the_cap(name: str) -> None:
    """At a half and a fifth of the steps."""
    for K in (10, 4):
        profile = calibrate(
            mixture_pipeline(), PROMPTS, schedule="uniform", compute_steps=K, show_progress=False,
            num_inference_steps=20, guidance_scale=7.0, **METHODS[name],
        )  # fmt: skip
        assert largest(profile) < LARGEST_COEFFICIENT / 100


@pytest.mark.parametrize("K", [5, 2])
def test_coefficients_at_site_hidden_stay_far_below_the_cap(K: int) -> None:
    profile = calibrate(
        pipelines.flux(), pipelines.PROMPTS, schedule="uniform", compute_steps=K, site="hidden", rectifier="channel",
        show_progress=False, **pipelines.CALL,
    )  # fmt: skip
    assert profile.site == "hidden" and 0 < largest(profile) < LARGEST_COEFFICIENT / 100
