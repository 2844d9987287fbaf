"""Outputs are refused before the work, written whole or not at all, and what a killed process left is removed."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ertacache.errors import InvalidArgument
from ertacache.files import Kind, check_output, json_object, rescued, save_atomic, write_atomic

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting needs root")


def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    yield from mounted(tmp_path / "full", "size=64k")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "read-only", "ro")


@pytest.mark.parametrize("kind", ["profile", "folder"])
def test_missing_folders_are_made_and_nothing_else_is_left(tmp_path: Path, kind: Kind):
    path = tmp_path / "a" / "b"
    assert check_output(str(path), kind) == path
    assert [entry.name for entry in path.parent.iterdir()] == (["b"] if kind == "folder" else [])
    assert not list((path if kind == "folder" else path.parent).glob("*.tmp"))
    path.parent.joinpath("old").write_text("old")
    check_output(path.parent / "old", "profile")
    assert (path.parent / "old").read_text() == "old"


def refused(path: Path, kind: Kind) -> str:
    with pytest.raises(InvalidArgument) as caught:
        check_output(path, kind)
    return str(caught.value)


def test_folder_and_file_are_not_taken_for_each_other(tmp_path: Path):
    (tmp_path / "file").touch()
    assert refused(tmp_path, "picture") == f"{tmp_path} is a folder; name a file for the picture"
    assert refused(tmp_path / "file", "folder") == f"{tmp_path}/file is a file; name a folder"
    assert refused(tmp_path / "file" / "x", "profile") == (
        f"cannot write the profile {tmp_path}/file/x: a file is where one of its folders should be; name another place"
    )
    assert refused(tmp_path / "file" / "x" / "y", "folder").startswith(
        f"cannot write the folder {tmp_path}/file/x/y: a file is where"
    )
    assert refused(Path("/dev/null"), "profile") == "/dev/null is a device; name a profile"
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("length", [250, 300])
def test_a_name_that_is_too_long_is_refused(tmp_path: Path, length: int):
    path = tmp_path / ("n" * length)
    assert refused(path, "profile") == f"cannot write the profile {path} (File name too long); name another place"


def test_a_place_where_nobody_writes_is_refused():
    assert refused(Path("/proc/x.png"), "picture").startswith("cannot write the picture /proc/x.png (")
    assert refused(Path("/proc/x"), "folder").startswith("cannot write the folder /proc/x (")


@AS_ROOT
def test_a_disk_that_is_mounted_for_reading_is_refused(read_only: Path):
    path = read_only / "p.safetensors"
    assert refused(path, "profile") == f"cannot write the profile {path} (Read-only file system); name another place"


@AS_ROOT
def test_a_full_disk_is_refused(full: Path):
    assert refused(full / "p", "profile") == (
        f"cannot write the profile {full}/p: its disk has 0.062 MiB left and a typical profile takes 1 MiB; free some "
        "space, or name another place"
    )
    assert refused(full / "out", "folder").startswith(f"cannot write the folder {full}/out: its disk has 0.062 MiB")


@AS_ROOT
def test_what_a_full_disk_refuses_in_the_end_is_saved_elsewhere(full: Path, monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(InvalidArgument) as caught:
        rescued(full / "p.safetensors", lambda path: write_atomic(path, b"x" * 2**17))
    message = str(caught.value)
    start = f"cannot write {full}/p.safetensors (No space left on device); it was saved as "
    assert message.startswith(start) and message.endswith(": move it")
    saved = Path(message.removeprefix(start).removesuffix(": move it"))
    assert saved.name == "p.safetensors" and saved.read_bytes() == b"x" * 2**17
    assert list(full.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch):
    path = tmp_path / "x"
    write_atomic(path, b"old")

    def fails(*arguments: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_pictures_are_written_through_a_file_object(tmp_path: Path):
    save_atomic(tmp_path / "new" / "x", lambda file: file.write(b"whole"))
    assert (tmp_path / "new" / "x").read_bytes() == b"whole"

    def fails(file: Any) -> None:
        file.write(b"half")
        raise ValueError("no such kind")

    with pytest.raises(ValueError, match="no such kind"):
        save_atomic(tmp_path / "new" / "x", fails)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["x"]


def test_what_a_killed_process_left_goes_with_the_next_write_of_that_file(tmp_path: Path):
    code = (
        "import os, sys, time; from pathlib import Path; from ertacache import files\n"
        "os.replace = lambda *names: (print('there', flush=True), time.sleep(60))\n"
        "files.write_atomic(Path(sys.argv[1]), b'new')"
    )
    path = tmp_path / "x"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    (left,) = tmp_path.iterdir()
    write_atomic(tmp_path / "y", b"another")
    write_atomic(path, b"meanwhile")
    assert left.exists(), "the process that writes it is alive"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    write_atomic(tmp_path / "y", b"another")
    assert left.exists(), "it is another file's"
    write_atomic(path, b"next")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x", "y"] and path.read_bytes() == b"next"


def test_only_ours_are_removed_and_those_of_other_machines_after_a_day(tmp_path: Path, monkeypatch):
    kept = [".x.tmp", "x.tmp", ".x.mine.tmp", ".xy.0123abcd-1-0123abcd.tmp", ".x.0123abcd-1-0123abc.tmp"]
    other = tmp_path / ".x.0123abcd-999999999-0123abcd.tmp"
    for name in (*kept, other.name):
        (tmp_path / name).touch()
    write_atomic(tmp_path / "x", b"")
    assert {entry.name for entry in tmp_path.iterdir()} == {*kept, other.name, "x"}
    os.utime(other, (0, time.time() - 25 * 3600))
    write_atomic(tmp_path / "x", b"")
    assert {entry.name for entry in tmp_path.iterdir()} == {*kept, "x"}
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    own = tmp_path / f".x.{'0' * 8}-1-0123abcd.tmp"
    own.touch()
    write_atomic(tmp_path / "x", b"")
    assert own.exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 10_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": -Infinity}', "-Infinity is no number of JSON"),
        ("[1]", "a list where an object belongs"),
        ("null", "a NoneType where an object belongs"),
        ("{", "Expecting property name"),
        (b'{"\xff": 1}', "codec can't decode"),
        (f'{{"a": {"1" * 5000}}}', "Exceeds the limit"),
    ],
)
def test_json_that_is_no_sound_object_is_refused(text: str | bytes, why: str):
    with pytest.raises(ValueError, match=why):
        json_object(text)
    assert json_object('{"a": [1, null]}') == {"a": [1, None]}
