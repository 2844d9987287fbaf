"""Corrections in a profile file: what is written, what is read back, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ertacache.core.compensation import Compensation
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument, ProfileInvalid
from ertacache.profile.profile import Profile
from ertacache.profile.scales import between, with_scales
from ertacache.profile.tables import CORRECTIONS
from profile_maker import FACTS, GOLDEN, facts, make, of_scale, parts_of, sealed

QUANTIZER = {"denoisers": [{"by": "ertacache", "scheme": "w4a4", "group": 64, "skip": ["*norm*"]}]}


def table(T: int = 5, channels: int = 3, **rows: dict[int, Any]) -> Compensation:
    """The identity but for rows: gain={2: 0.5}."""
    made = {"gain": torch.ones(T, channels), "previous": torch.zeros(T, channels), "bias": torch.zeros(T, channels)}
    for name, values in rows.items():
        for i, value in values.items():
            made[name][i] = torch.as_tensor(value)
    return Compensation(**made)


def corrected(**changes: Any) -> Profile:
    given = {"compensation": table(gain={2: [1.0, 0.5, 2.0]}, bias={4: 1.5}), "provenance": facts(quantizer=QUANTIZER)}
    return make(**{**given, **changes})


def damaged(edit: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> bytes:
    """A corrected profile's file with another document and other tensors, and a checksum that is right."""
    data = corrected().to_bytes()
    _, document, _ = parts_of(data)
    tensors: dict[str, Tensor] = load_tensors(data)
    edit(document, tensors)
    kept = {name: one.clone() for name, one in tensors.items()}
    header, _, blob = parts_of(save_tensors(kept, {"ertacache": json.dumps(document)}))
    return sealed(header, blob)


def test_a_corrected_profile_comes_back_whole():
    profile = corrected()
    read = Profile.from_bytes(profile.to_bytes())
    assert read == profile and read.to_bytes() == profile.to_bytes()
    assert read.compensation is not None and profile.compensation is not None
    for name in ("gain", "previous", "bias"):
        assert torch.equal(getattr(read.compensation, name), getattr(profile.compensation, name))
    assert read.provenance.quantizer == QUANTIZER


def test_only_rows_that_change_something_are_in_the_file():
    data = corrected().to_bytes()
    assert parts_of(data)[1]["compensation"] == [2, 4]
    assert {name: tuple(load_tensors(data)[name].shape) for name in CORRECTIONS} == dict.fromkeys(CORRECTIONS, (2, 3))


def test_a_profile_without_a_quantiser_is_of_version_5_to_the_byte():
    import hashlib

    data = make().to_bytes()
    assert parts_of(data)[1]["version"] == 5
    assert hashlib.sha256(data).hexdigest() == GOLDEN
    quantised = make(provenance=facts(quantizer=QUANTIZER))
    document = parts_of(quantised.to_bytes())[1]
    assert document["version"] == 6 and document["compensation"] is None
    assert Profile.from_bytes(quantised.to_bytes()) == quantised


def test_profiles_of_several_grids_have_corrections_of_their_own():
    grid = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.2, 0.0])
    other = corrected(compensation=table(channels=1, bias={0: 2.0}), base_sigmas=grid, sigmas=grid)
    profile = replace(corrected(), others=(other,))
    read = Profile.from_bytes(profile.to_bytes())
    assert read == profile and read.others[0].compensation is not None
    assert read.others[0].compensation.bias[0].tolist() == [2.0]


def test_between_two_scales_corrections_lie_on_the_line():
    low = of_scale(corrected(), "guidance_weight", 4.0)
    high = of_scale(corrected(compensation=table(channels=1, bias={0: 2.0})), "guidance_weight", 8.0)
    both = with_scales([low, high])
    found = between(both, both.others[0], 0.25).compensation
    assert found is not None
    assert found.bias[[0, 4]].tolist() == [[0.5] * 3, [1.125] * 3]
    assert found.gain[2].tolist() == [1.0, 0.625, 1.75]
    plain = of_scale(make(provenance=facts(quantizer=QUANTIZER)), "guidance_weight", 8.0)
    assert between(low, plain, 0.5).compensation.gain[2].tolist() == [1.0, 0.75, 1.5]  # type: ignore[union-attr]
    assert between(plain, plain, 0.5).compensation is None


def set_to(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def edit(document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        (tensors if isinstance(value, Tensor) else document)[name] = value

    return edit


def without(name: str) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def edit(document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        (document if name in document else tensors).pop(name)

    return edit


# The ids are the evidence column of docs/profile-format.md.
HOSTILE: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], None], str]] = {
    "no key": (without("compensation"), "document: 'compensation' is missing"),
    "key in version 5": (set_to("version", 5), "document: 'compensation' is unknown in version 5"),
    "no table": (without("compensation.gain"), "tensors: 'compensation.gain' is missing"),
    "table too many": (set_to("compensation.x", torch.ones(2, 3)), "'compensation.x' is unknown in version 6"),
    "steps not a list": (set_to("compensation", "##"), r"compensation is '##'; give the corrected steps of 5, rising"),
    "steps not whole": (set_to("compensation", [2, 4.0]), r"compensation is \[2, 4.0\]; give the corrected steps"),
    "steps not rising": (set_to("compensation", [4, 2]), r"compensation is \[4, 2\]; give the corrected steps"),
    "steps beyond": (set_to("compensation", [2, 5]), r"compensation is \[2, 5\]; give the corrected steps"),
    "steps none": (set_to("compensation", []), r"compensation is \[\]; give the corrected steps"),
    "rows too many": (
        set_to("compensation", [2]),
        r"compensation.bias has shape \[2, 3\] where 1 corrected steps",
    ),
    "rows of more axes": (set_to("compensation.gain", torch.ones(2, 3, 1)), r"compensation.gain has shape \[2, 3, 1\]"),
    "idle row": (set_to("compensation.bias", torch.zeros(2, 3)), "compensation names step 4 and changes nothing there"),
    "half": (set_to("compensation.gain", torch.ones(2, 3).half()), "gain is torch.float16 on cpu; give table.float"),
    "NaN": (set_to("compensation.gain", torch.full((2, 3), torch.nan)), "tensor 'compensation.gain': holds NaN or inf"),
    "huge": (set_to("compensation.gain", torch.full((2, 3), 2e4)), r"gain holds 2e\+04 at step 2, beyond ±10000"),
    "channels": (set_to("compensation.gain", torch.ones(2, 7)), r"previous has shape \(5, 3\) where \(5, 7\) fits"),
    "no others": (set_to("compensation", None), "'compensation.bias' is unknown in version 6"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_damaged_file_is_refused(case: str):
    edit, message = HOSTILE[case]
    with pytest.raises(ProfileInvalid, match=message):
        Profile.from_bytes(damaged(edit))


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "idle": ({"compensation": table()}, "compensation changes nothing; leave it out"),
    "predicted": ({"compensation": table(gain={1: 2.0})}, "corrects step 1 of '#.#.#', which is predicted; leave it"),
    "steps": ({"compensation": table(T=4, bias={0: 1.0})}, "compensation has 4 steps where .* need 5; calibrate"),
    "channels": ({"compensation": table(channels=2, bias={0: 1.0})}, "compensation has 2 channels where .* 1 or 3;"),
    "previous": ({"compensation": table(previous={2: 1.0})}, "compensation.previous is not 0 at step 2 of '#.#.#'"),
    "site": ({"site": "output"}, "compensation corrects what the solver receives, and site is 'output'; calibrate"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_the_profile_is_refused(case: str):
    changes, message = UNFIT[case]
    with pytest.raises(InvalidArgument, match=message):
        corrected(**changes)


def test_no_step_is_owed_anything_by_another_denoiser():
    profile = corrected()
    whole = Schedule.all_computed(5)
    zero = type(profile.predictor)(
        profile.predictor.targets, profile.predictor.sources, *(0 * getattr(profile.predictor, name) for name in "adb")
    )
    method = {**FACTS["method"], "schedule": str(whole)}
    own = facts(quantizer=QUANTIZER, boundaries=[3], later_weights=[7.0], method=method)
    fits = corrected(schedule=whole, predictor=zero, provenance=own, compensation=table(previous={2: 1.0}))
    assert Profile.from_bytes(fits.to_bytes()) == fits
    with pytest.raises(InvalidArgument, match=r"compensation.previous is not 0 at step 3 of '#####', before which"):
        replace(fits, compensation=table(previous={3: 1.0}))


@pytest.mark.parametrize("value", [{"denoisers": []}, {"denoisers": [None, None]}, {"by": "x"}, {"denoisers": ["w4"]}])
def test_a_quantiser_is_told_for_each_denoiser(value: dict[str, Any]):
    with pytest.raises(InvalidArgument, match=r"provenance.quantizer is .* give \{'denoisers': \[...\]\} with one"):
        facts(quantizer=value)


def test_a_reference_is_a_fingerprint():
    assert facts(reference_weights=FACTS["weights"]).reference_weights == FACTS["weights"]
    with pytest.raises(InvalidArgument, match=r"provenance.reference_weights is 'x'; it must be 16 hexadecimal digits"):
        facts(reference_weights="x")
