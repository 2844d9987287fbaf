"""The profile: exact round trips, stable bytes, atomic writing, what it may hold, and the Hub."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import profile_maker
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument, PredictorInvalid, ProfileInvalid, ScheduleInvalid
from ertacache.profile import profile_file
from ertacache.profile.fingerprint import config_hash, prompt_hash
from ertacache.profile.profile import Profile, Provenance, Rectifier
from ertacache.profile.profile_source import FILE_NAME
from profile_maker import FACTS, GOLDEN, facts, make, parts_of, reaching_too_far

# -- round trips and stable bytes ------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "linear", "sigmoid"])
def test_round_trip_is_exact(tmp_path: Path, activation: Any) -> None:
    profile = make("hidden", activation)
    path = profile.save(tmp_path / "p.safetensors")
    loaded = Profile.load(path)

    assert path == tmp_path / "p.safetensors"
    assert (loaded.schedule, loaded.site) == (profile.schedule, "hidden")
    assert (loaded.predictor.targets, loaded.predictor.sources) == (("cond", "uncond"), ("cond", "uncond"))
    for name in ("a", "d", "b"):
        assert torch.equal(getattr(loaded.predictor, name), getattr(profile.predictor, name))
    assert torch.equal(loaded.sigmas, profile.sigmas) and torch.equal(loaded.base_sigmas, profile.base_sigmas)
    assert loaded.provenance == profile.provenance
    if activation:
        assert loaded.rectifier and profile.rectifier
        assert loaded.rectifier.activation == activation
        assert torch.equal(loaded.rectifier.kappa, profile.rectifier.kappa)
        assert torch.equal(loaded.rectifier.beta, profile.rectifier.beta)
    else:
        assert loaded.rectifier is None
    assert loaded == profile and hash(loaded) == hash(profile)
    assert loaded.to_bytes() == path.read_bytes()


def test_profiles_differ_when_one_number_differs() -> None:
    profile = make()
    sigmas = profile.sigmas.clone()
    sigmas[2] = sigmas[2].nextafter(torch.tensor(2.0))
    assert make(sigmas=sigmas) != profile
    assert make(provenance=facts(seed=1)) != profile
    assert make("output") != profile
    assert profile != "a profile"


def test_bytes_are_those_of_version_5() -> None:
    assert hashlib.sha256(make().to_bytes()).hexdigest() == GOLDEN


@pytest.mark.parametrize("seed", ["0", "1"])
def test_bytes_do_not_depend_on_the_process(seed: str) -> None:
    env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, profile_maker.__file__], env=env, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [
        GOLDEN,
        config_hash({"b": {1, "x"}, "a": len}),
        prompt_hash(["a red square"]),
        "[]",  # neither diffusers nor huggingface_hub was imported
    ]


def test_bytes_do_not_depend_on_key_order_or_on_memory_layout() -> None:
    profile = make()
    turned = {k: dict(reversed(v.items())) if isinstance(v, dict) else v for k, v in FACTS.items()}
    strided = torch.stack([profile.sigmas, profile.sigmas], 1)[:, 0]
    assert not strided.is_contiguous()
    assert make(provenance=Provenance(**turned), sigmas=strided).to_bytes() == profile.to_bytes()


def test_a_grid_may_rise() -> None:
    """As Mochi's, whose noise is at sigma 0."""
    grid = make().base_sigmas.flip(0)
    loaded = Profile.from_bytes(make(base_sigmas=grid, sigmas=grid).to_bytes())
    assert torch.equal(loaded.sigmas, grid) and torch.equal(loaded.base_sigmas, grid)


def test_an_unadjusted_grid_may_be_the_base_grid_itself() -> None:
    grid = make().base_sigmas
    loaded = Profile.from_bytes(make(base_sigmas=grid, sigmas=grid).to_bytes())
    assert torch.equal(loaded.sigmas, grid) and torch.equal(loaded.base_sigmas, grid)


def test_metadata_is_one_key_of_sorted_json() -> None:
    header, document, _ = parts_of(make().to_bytes())
    text = header["__metadata__"]["ertacache"]
    assert list(header["__metadata__"]) == ["ertacache"]
    assert text == json.dumps(document, sort_keys=True)
    assert (document["version"], document["schedule"], document["activation"]) == (5, "#.#.#", None)


# -- writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_failure_in_mid_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    path = make().save(tmp_path / "p.safetensors")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        assert len(list(tmp_path.iterdir())) == 2  # the new content is beside the old
        raise OSError("no space left on device")

    monkeypatch.setattr(os, stage, fail)
    with pytest.raises(OSError, match="no space left"):
        make("output").save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_save_replaces_and_has_ordinary_permissions(tmp_path: Path) -> None:
    path = make().save(tmp_path / "p.safetensors")
    make("output").save(str(path))
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert Profile.load(path).site == "output"
    assert path.stat().st_mode == ordinary.stat().st_mode
    assert set(tmp_path.iterdir()) == {path, ordinary}


def test_no_more_is_read_than_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make().save(tmp_path / "p.safetensors")
    monkeypatch.setattr(profile_file, "SIZE_CAP", 10)
    assert profile_file.read_capped(path) == path.read_bytes()[:11]


def test_caps_hold_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = make()
    data = profile.to_bytes()
    header = int.from_bytes(data[:8], "little")
    for cap, size in (("SIZE_CAP", len(data)), ("HEADER_CAP", header)):
        with monkeypatch.context() as patch:
            patch.setattr(profile_file, cap, size)
            assert Profile.from_bytes(profile.to_bytes()) == profile
            patch.setattr(profile_file, cap, size - 1)
            with pytest.raises(InvalidArgument, match=rf"{size} bytes, over the cap of {size - 1}"):
                profile.to_bytes()
            with pytest.raises(ProfileInvalid, match=f"over the cap of {size - 1}"):
                Profile.from_bytes(data)


# -- what a profile may hold -----------------------------------------------------------------------------


def test_parts_that_do_not_fit_are_refused_in_memory_too() -> None:
    with pytest.raises(InvalidArgument, match="site is 'head'"):
        make("head")
    with pytest.raises(InvalidArgument, match=r"sigmas is torch.float64 on cpu; pass sigmas.float\(\).cpu\(\)"):
        make(sigmas=make().sigmas.double())
    with pytest.raises(InvalidArgument, match="base_sigmas holds NaN or infinity"):
        make(base_sigmas=make().base_sigmas.index_fill(0, torch.tensor([0]), float("inf")))
    with pytest.raises(InvalidArgument, match="schedule has 4097 steps; use at most 4096"):
        make(schedule=Schedule.all_computed(4097))
    with pytest.raises(ScheduleInvalid, match="step 1 of"):
        make(predictor=replace(make().predictor, a=reaching_too_far()))
    with pytest.raises(PredictorInvalid, match=r"step 1 .*computed"):
        make(schedule=Schedule.from_mask("###.#"))
    with pytest.raises(InvalidArgument, match=r"rectifier.activation is 'relu'"):
        make(activation="relu")
    with pytest.raises(InvalidArgument, match=r"in torch.float32 and torch.float16; both must be"):
        Rectifier(torch.zeros(5, 1), torch.zeros(5, 1).half())


# -- paths and the Hub -----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["no/such/file.safetensors", "runs/p.safetensors", "./org/name", "nothing", ""])
def test_a_path_that_is_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgument, match=r"there is no profile at .*not a Hub id such as 'org/name'; check"):
        Profile.load(source)


def test_a_path_object_is_never_a_hub_id() -> None:
    with pytest.raises(InvalidArgument, match="there is no profile at 'org/name'"):
        Profile.load(Path("org/name"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A Hub with one repository, on this disk; yields the calls that it got."""
    calls: list[Any] = []
    stored = tmp_path / "stored"

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls.append(("api", token))

        def create_repo(self, repo_id: str, **options: Any) -> None:
            calls.append(("create", repo_id, options))

        def upload_file(self, *, path_or_fileobj: bytes, **options: Any) -> str:
            stored.write_bytes(path_or_fileobj)
            calls.append(("upload", options))
            return "commit address"

    def download(repo_id: str, filename: str, *, subfolder: Any = None, revision: Any = None) -> str:
        calls.append(("download", repo_id, filename, subfolder, revision))
        if not stored.exists():
            raise LocalEntryNotFoundError("no network")
        return str(stored)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    yield calls


def test_push_to_hub_and_load_from_it(hub: list[Any]) -> None:
    assert make().push_to_hub("org/name", private=True, token="t", revision="main") == "commit address"
    assert Profile.load("org/name", revision="v1") == make()
    assert hub == [
        ("api", "t"),
        ("create", "org/name", {"private": True, "exist_ok": True}),
        (
            "upload",
            {"path_in_repo": "profile.safetensors", "repo_id": "org/name", "token": "t", "revision": "main"},
        ),
        ("download", "org/name", FILE_NAME, None, "v1"),
    ]


def test_a_download_that_fails_says_what_to_check(hub: list[Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"'org/name' at revision None: no network; check"):
        Profile.load("org/name")


def test_a_local_folder_wins_over_the_hub(hub: list[Any], tmp_path: Path) -> None:
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    make().save(folder / "profile.safetensors")
    assert Profile.load("org/name") == make()
    assert hub == []
    with pytest.raises(InvalidArgument, match="revision 'v1' was given for org/name on this disk"):
        Profile.load("org/name", revision="v1")


def test_a_file_of_another_name_is_found_in_folders(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "fast"
    folder.mkdir(parents=True)
    make().save(folder / "k15.safetensors")
    for found in (
        Profile.load(tmp_path / "runs", subfolder="fast", filename="k15.safetensors"),
        Profile.load(str(folder), filename="k15.safetensors"),
        Profile.load(tmp_path, subfolder="runs/fast", filename="k15.safetensors"),
    ):
        assert found == make()
    with pytest.raises(
        InvalidArgument, match=r"no profile.safetensors in the folder .*; it holds k15.safetensors: name"
    ):
        Profile.load(folder)
    with pytest.raises(InvalidArgument, match=r"no k9.safetensors in the folder .*it holds k15.safetensors"):
        Profile.load(folder, filename="k9.safetensors")
    with pytest.raises(InvalidArgument, match=r"no profile.safetensors in the folder .*slow; check filename and subf"):
        Profile.load(tmp_path, subfolder="slow")
    with pytest.raises(InvalidArgument, match=r"filename 'x' was given beside the file .*k15.safetensors; give"):
        Profile.load(folder / "k15.safetensors", filename="x")
    with pytest.raises(InvalidArgument, match=r"subfolder 'x' was given beside the file"):
        Profile.load(folder / "k15.safetensors", subfolder="x")


def test_a_file_of_another_name_is_asked_of_the_hub(hub: list[Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"no fast/k15.safetensors came from Hub repository 'org/name'"):
        Profile.load("org/name", filename="k15.safetensors", subfolder="fast", revision="v1")
    assert hub == [("download", "org/name", "k15.safetensors", "fast", "v1")]


@pytest.mark.parametrize("source", [None, 3, b"x"])
def test_a_source_of_another_kind_is_refused(source: Any):
    with pytest.raises(
        InvalidArgument, match=r"the profile's source is .*; give a path or a Hub id such as 'org/name'"
    ):
        Profile.load(source)


def test_names_of_another_kind_are_refused(tmp_path: Path):
    with pytest.raises(InvalidArgument, match="filename is 3; give a text"):
        Profile.load(tmp_path, filename=3)  # pyright: ignore[reportArgumentType]
