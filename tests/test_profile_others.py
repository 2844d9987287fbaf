"""Several profiles in one file: what goes in comes out, what does not fit together is refused, all of it is shown."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument, ProfileInvalid
from ertacache.profile import tables
from ertacache.profile.profile import Profile
from ertacache.profile.profile_summary import summary_facts
from profile_maker import edited, facts, make, parts_of, sealed

#: Another grid of as many steps, and one of more.
HALF = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.125, 0.0])
LONG = torch.linspace(1, 0, 8)


def sized(height: int, width: int, **changes: Any) -> Any:
    return facts(call={"height": height, "width": width}, heldout={}, measured={}, **changes)


def other(activation: Any = None, **changes: Any) -> Profile:
    return make(activation=activation, **{"base_sigmas": HALF, "sigmas": HALF, "provenance": sized(48, 96), **changes})


def longer() -> Profile:
    schedule = Schedule.from_mask("#..#..#")
    grids = {"base_sigmas": LONG, "sigmas": LONG, "provenance": sized(80, 40, num_inference_steps=7)}
    return make(schedule=schedule, predictor=Predictor.residual_reuse(schedule, ("guided",)), **grids)


def several(activation: Any = None) -> Profile:
    """Rectified or not, one with and one without; other histories, other lengths."""
    return make(activation=activation, others=(other("linear" if activation is None else None), longer()))


@pytest.mark.parametrize("activation", [None, "linear"])
def test_what_is_saved_comes_back_each_with_its_own_facts(tmp_path: Path, activation: Any) -> None:
    profile = several(activation)
    found = Profile.load(profile.save(tmp_path / "p.safetensors"))
    assert found == profile and found.to_bytes() == profile.to_bytes() and hash(found) == hash(profile)
    assert replace(found, others=()) == make(activation=activation)
    assert found.others[1:] == (longer(),) and found.others[0].provenance == sized(48, 96)
    assert [own.others for own in found.others] == [(), ()]
    assert found != make(activation=activation) and found != replace(profile, others=profile.others[::-1])


def test_the_file_of_one_profile_knows_nothing_of_others() -> None:
    _, document, _ = parts_of(make().to_bytes())
    assert "others" not in document
    _, document, _ = parts_of(several().to_bytes())
    assert [entry["schedule"] for entry in document["others"]] == ["#.#.#", "#..#..#"]
    names = load_tensors(several().to_bytes())
    assert torch.equal(names["others.1.base_sigmas"], LONG) and "others.0.rectifier.kappa" in names


Edit = Callable[[dict[str, Any]], None]


def document_of(edit: Edit) -> bytes:
    return edited(several(), edit, seal=True)


def tensors_of(**changes: torch.Tensor | None) -> bytes:
    data = several().to_bytes()
    named: dict[str, Any] = {**load_tensors(data), **{key.replace("__", "."): value for key, value in changes.items()}}
    kept = {name: value.clone() for name, value in named.items() if value is not None}
    header, _, blob = parts_of(save_tensors(kept, parts_of(data)[0]["__metadata__"]))
    return sealed(header, blob)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "no list": (lambda: document_of(lambda d: d.update(others={})), r"others: is \{\}, not a list of objects"),
    "empty list": (lambda: document_of(lambda d: d.update(others=[])), r"others: is \[\], not a list of objects"),
    "no objects": (lambda: document_of(lambda d: d.update(others=["x"])), r"others: is \['x'\], not a list of objects"),
    "too many": (
        lambda: document_of(lambda d: d.update(others=d["others"][:1] * 16)),
        r"others: has 16 profiles, over the cap of 15",
    ),
    "nested": (
        lambda: document_of(lambda d: d["others"][0].update(others=[])),
        r"others\[0\]: 'others' is unknown in version 5",
    ),
    "key missing": (lambda: document_of(lambda d: d["others"][1].pop("site")), r"others\[1\]: 'site' is missing"),
    "version in it": (lambda: document_of(lambda d: d["others"][1].update(version=4)), r"others\[1\]: 'version' is un"),
    "no facts": (
        lambda: document_of(lambda d: d["others"][0].update(provenance=None)),
        r"others\.0\.provenance: is None, not an object",
    ),
    "facts missing": (
        lambda: document_of(lambda d: d["others"][0]["provenance"].pop("seed")),
        r"others\.0\.provenance: 'seed' is missing",
    ),
    "tensor missing": (lambda: tensors_of(others__1__sigmas=None), r"others\.1\.tensors: 'sigmas' is missing"),
    "tensor unknown": (lambda: tensors_of(others__0__x=HALF), r"others\.0\.tensors: 'x' is unknown"),
    "of no profile": (lambda: tensors_of(others__2__sigmas=HALF), r"tensors: 'others.2.sigmas' is unknown"),
    "unsound": (
        lambda: tensors_of(others__0__sigmas=torch.ones(6)),
        r"others\.0\.content: sigmas goes from 1.0 to 1.0 at step 0",
    ),
    "other model": (
        lambda: document_of(lambda d: d["others"][0]["provenance"].update(model_class="Other")),
        r"content: others\[0\]\.provenance\.model_class is 'Other' where the first profile has 'Flux",
    ),
    "same grid": (
        lambda: tensors_of(others__0__base_sigmas=make().base_sigmas, others__0__sigmas=make().base_sigmas),
        r"content: others\[0\]\.base_sigmas is the grid of a profile before it",
    ),
    "older version": (
        lambda: document_of(lambda d: d.update(version=3)),
        r"document: 'others' is unknown in version 3",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_of_several_is_refused(tmp_path: Path, case: str) -> None:
    build, message = HOSTILE[case]
    path = tmp_path / "p.safetensors"
    path.write_bytes(build())
    with pytest.raises(ProfileInvalid, match=message) as caught:
        Profile.load(path)
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_class", "WanTransformer3DModel"),
        ("scheduler_class", "UniPCMultistepScheduler"),
        ("model_config", {"guidance_embeds": False}),
        ("scheduler_config", {"shift": 1.0}),
        ("weights", "11aa11bb22cc33dd:gD+AP8B/wH8="),
    ],
)
def test_profiles_of_other_models_are_not_kept_in_one_file(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=rf"others\[0\]\.provenance\.{name} is .*; keep profiles of one model"):
        make(others=(other(provenance=sized(48, 96, **{name: value})),))


def test_what_cannot_stand_beside_the_first_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"others\[0\] has others; keep all of them in the first profile"):
        make(others=(several(),))
    with pytest.raises(InvalidArgument, match=r"others\[1\]\.base_sigmas is the grid of a profile before it"):
        make(others=(other(), other("linear")))
    output = make(site="output", base_sigmas=HALF, sigmas=HALF)
    with pytest.raises(InvalidArgument, match=r"others\[0\]\.site is 'output' where the first profile's is 'guided'"):
        make(others=(output,))
    many = [HALF * (1 - n / 100) for n in range(16)]
    with pytest.raises(InvalidArgument, match=r"others has 16 profiles; keep at most 15 beside the first"):
        make(others=tuple(other(base_sigmas=grid, sigmas=grid) for grid in many))
    assert len(make(others=tuple(other(base_sigmas=grid, sigmas=grid) for grid in many[:15])).others) == 15


def test_several_profiles_share_the_room_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of the second needs 5 · 2 · 2 · 3 numbers of 4 bytes."""
    data = several().to_bytes()
    monkeypatch.setattr(tables, "TABLE_CAP", 3 * 240)
    assert Profile.from_bytes(data) == several()
    monkeypatch.setattr(tables, "TABLE_CAP", 3 * 240 - 1)
    with pytest.raises(ProfileInvalid, match=r"predictor\.a takes 240 bytes in memory at 5 steps, over the cap of 239"):
        Profile.from_bytes(data)
    assert Profile.from_bytes(make().to_bytes()) == make()


def test_each_is_shown_with_its_size() -> None:
    profile = several()
    lines = profile.summary().splitlines()
    assert [line for line in lines if "computes" in line] == [
        "#.#.#  computes 3 of 5 steps",
        "#.#.#  computes 3 of 5 steps",
        "#..#..#  computes 3 of 7 steps",
    ]
    assert [line for line in lines if line.startswith("size")] == ["size: 64×64", "size: 48×96", "size: 80×40"]
    assert "size" not in make().summary()
    assert "3 time grids" in repr(profile) and "time grids" not in repr(make())
    page = profile._repr_html_()
    assert page.count("<dl>") == 3 and page.count("<style>") == 1 and "<dd>48×96</dd>" in page
    found = json.loads(json.dumps(summary_facts(profile)))["others"]
    assert [entry["schedule"] for entry in found] == ["#.#.#", "#..#..#"] and found[1]["call"]["height"] == 80


def test_a_hostile_size_is_not_shown() -> None:
    strange = facts(call={"height": "<b>", "width": [1]})
    assert "size" not in make(others=(other(),), provenance=strange).summary().replace("size: 48×96", "")
