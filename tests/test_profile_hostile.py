"""A refusal for every way in which a profile file can be wrong, and the specification that lists them."""

import dataclasses
import re
from pathlib import Path

import pytest

import test_profile
import test_profile_compensation
import test_profile_others
import test_profile_scales
import test_profile_shapes
import test_profile_small
import test_profile_versions
import test_provenance
from ertacache.errors import InvalidArgument, ProfileInvalid
from ertacache.profile import profile_file, sealed
from ertacache.profile.profile import Profile, Provenance
from hostile_contents import INCONSISTENT, Case, told
from hostile_profiles import HOSTILE
from profile_maker import (
    with_document,
    with_facts,
    with_header,
    with_tensors,
)

SPECIFICATION = Path(__file__).parents[1] / "docs" / "profile-format.md"


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path: Path, case: str) -> None:
    build, message = HOSTILE[case]
    path = tmp_path / "p.safetensors"
    path.write_bytes(build())
    with pytest.raises(ProfileInvalid, match=message) as caught:
        Profile.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert re.search(r"; .*(calibrate|download|check the path|no ertacache profile)", text), "no remedy"
    assert len(text) < 1000


@pytest.mark.parametrize("case", INCONSISTENT)
def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path, case: str) -> None:
    """In a file whose checksum is right, and in memory by the same words."""
    path = tmp_path / "p.safetensors"
    path.write_bytes(INCONSISTENT[case].in_file())
    with pytest.raises(ProfileInvalid, match=INCONSISTENT[case].message) as loaded:
        Profile.load(path)
    with pytest.raises(InvalidArgument, match=INCONSISTENT[case].message) as built:
        INCONSISTENT[case].in_memory()
    assert str(loaded.value) == f"{path}: content: {built.value}; {profile_file._REWRITE}"
    assert ";" in str(built.value), "no remedy"


@pytest.mark.parametrize("site", ["output", "guided", "hidden"])
def test_the_sound_profile_behind_the_inconsistent_ones_loads(site: str) -> None:
    case = Case("", site, "linear", facts=told(site=site))
    assert Profile.from_bytes(case.in_file()) == case.in_memory()


@pytest.mark.parametrize("case", ["oversized file", "oversized header", "truncated header", "garbage"])
def test_caps_are_checked_before_anything_is_parsed(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    def parsed(*_: object, **__: object) -> None:
        raise AssertionError("parsed")

    build, message = HOSTILE[case]
    data = build()
    monkeypatch.setattr(sealed.json, "loads", parsed)
    monkeypatch.setattr(sealed, "load_tensors", parsed)
    with pytest.raises(ProfileInvalid, match=message):
        Profile.from_bytes(data)


def test_the_sound_file_behind_the_hostile_ones_loads() -> None:
    for data in (
        with_header(lambda _: None),
        with_document(),
        with_facts(),
        with_tensors(),
        with_tensors("linear"),
    ):
        Profile.from_bytes(data)


def test_every_rule_of_the_specification_names_its_test() -> None:
    text = SPECIFICATION.read_text(encoding="utf-8")
    rules = re.findall(r"^\| (R\d+) \| (.+) \| (.+) \|$", text, flags=re.MULTILINE)
    assert [rule for rule, _, _ in rules] == [f"R{i + 1}" for i in range(len(rules))] and len(rules) > 20
    known = {
        *HOSTILE,
        *INCONSISTENT,
        *globals(),
        *vars(test_profile),
        *vars(test_profile_compensation),
        *test_profile_compensation.HOSTILE,
        *test_profile_compensation.UNFIT,
        *vars(test_profile_others),
        *vars(test_profile_scales),
        *vars(test_profile_shapes),
        *vars(test_profile_small),
        *test_profile_small.HOSTILE,
        *vars(test_profile_versions),
        *vars(test_provenance),
    }
    named: set[str] = set()
    for rule, body, evidence in rules:
        assert re.search(r"\b(MUST|MAY)\b", body), f"{rule} is no rule"
        cases = set(re.findall(r"`([^`]+)`", evidence))
        assert cases and cases <= known, f"{rule}: {cases - known}"
        named |= cases
    unnamed = {*HOSTILE, *INCONSISTENT, *test_profile_compensation.HOSTILE, *test_profile_compensation.UNFIT} - named
    assert not unnamed, unnamed


def test_the_specification_lists_every_provenance_field() -> None:
    text = SPECIFICATION.read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert [field.name for field in dataclasses.fields(Provenance)] == listed
