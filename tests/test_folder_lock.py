"""A folder of results is one process's at a time: shown with two real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ertacache.errors import InvalidArgument
from ertacache.runtime import folder_lock
from ertacache.runtime.folder_lock import check_results, locked

_HOLDS = """
import sys, time
from pathlib import Path
from ertacache.runtime.folder_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has the folder until it reads a line."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", _HOLDS, str(tmp_path)], **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        if process.poll() is None:
            process.kill()


def refusal(folder: Path) -> str:
    with pytest.raises(InvalidArgument) as caught, locked(folder):
        pytest.fail("two processes have it")
    return str(caught.value)


def test_a_second_process_is_told_whose_it_is(holder: "subprocess.Popen[str]", tmp_path: Path):
    facts = json.loads((tmp_path / ".lock").read_text())
    assert (facts["host"], facts["pid"]) == (socket.gethostname(), holder.pid)
    expected = (
        f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()} since {facts['since']}; wait until it "
        "has ended, or choose another folder"
    )
    assert refusal(tmp_path) == expected
    with pytest.raises(InvalidArgument, match="is in use by process"):
        check_results(tmp_path)
    assert json.loads((tmp_path / ".lock").read_text()) == facts


def test_it_is_free_when_the_other_one_is_done(holder: "subprocess.Popen[str]", tmp_path: Path):
    holder.communicate("\n")
    assert holder.returncode == 0 and not (tmp_path / ".lock").exists()
    check_results(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over(holder: "subprocess.Popen[str]", tmp_path: Path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == holder.pid
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_it_is_released_after_an_exception_and_held_against_this_process_too(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "new"):
        assert f"process {os.getpid()} on" in refusal(tmp_path / "new")
        raise ZeroDivisionError
    check_results(tmp_path / "new")


def test_a_lock_file_that_says_nothing_is_another_process(tmp_path: Path):
    with locked(tmp_path):
        (tmp_path / ".lock").write_text("[")
        assert refusal(tmp_path).startswith(f"{tmp_path} is in use by another process; wait")


def test_a_file_that_was_removed_meanwhile_is_made_anew(tmp_path: Path, monkeypatch):
    real, removed = folder_lock._lock, []

    def lock(descriptor: int) -> bool:
        if not removed:
            removed.append((tmp_path / ".lock").unlink())
        return real(descriptor)

    monkeypatch.setattr(folder_lock, "_lock", lock)
    with locked(tmp_path):
        assert removed and json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_where_nothing_can_be_locked_the_log_says_so(tmp_path: Path, monkeypatch, caplog):
    import fcntl

    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path):
        pass
    assert caplog.messages == [
        "folders cannot be locked here (No locks available); start no second process on one folder"
    ]
