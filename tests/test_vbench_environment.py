"""Making VBench's environment, with a script in place of every Python; nothing is installed or downloaded."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ertacache.errors import InvalidArgument, VBenchFailed
from ertacache.evaluation.vbench.environment import MARKER, REQUIREMENTS, default_folder, ready, setup
from fake_python import Fake


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


def test_setup_makes_installs_checks_and_marks(fake: Fake):
    made = setup(fake.environment, fake.python())
    assert made == {"folder": str(fake.environment), "python": "3.11.7", "installed": True}
    base, inner = fake.python(), str(fake.environment / "bin" / "python")
    asked = [(entry["exe"], entry["argv"]) for entry in fake.entries()]
    assert asked == [
        (base, ["-m", "venv", str(fake.environment)]),
        (inner, ["-m", "pip", "install", *REQUIREMENTS]),
        (inner, ["-c", "import vbench, clip"]),
    ]
    assert json.loads((fake.environment / MARKER).read_text()) == {
        "requirements": ["vbench==0.1.5", "numpy<2", "transformers==4.33.2", "torch<2.6", "torchvision<0.21",
                         "setuptools>=80,<81"],
        "python": "3.11.7",
    }  # fmt: skip
    assert setup(fake.environment, fake.python()) == {**made, "installed": False}
    assert len(fake.entries()) == 3


def test_setup_keeps_the_other_environment_apart(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    apart = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER")
    for name in (*apart, "PIP_CONSTRAINT"):
        monkeypatch.setenv(name, str(fake.folder / "main"))
    monkeypatch.setenv("PIP_INDEX_URL", "file:///the/users/own")
    setup(fake.environment, fake.python())
    for entry in fake.entries():
        assert not set(apart) & entry["env"].keys()
        assert entry["env"]["PIP_INDEX_URL"] == "file:///the/users/own"
    making, installing, importing = (entry["env"] for entry in fake.entries())
    assert "PIP_CONSTRAINT" not in making and "PIP_CONSTRAINT" not in importing
    constraints = Path(installing["PIP_CONSTRAINT"])
    assert constraints.parent == fake.environment and constraints.read_text() == "setuptools<81\n"
    assert installing["PIP_BUILD_CONSTRAINT"] == str(constraints)


@pytest.mark.parametrize(
    ("step", "what"), [("venv", "making the environment"), ("pip", "installing VBench"), ("import", "importing VBench")]
)
def test_a_failed_setup_tells_its_last_lines_and_goes_on(fake: Fake, capfd: Any, step: str, what: str):
    fake.behave(fail=step)
    with pytest.raises(VBenchFailed, match=f"{what}.* failed with exit code 1; run the command again") as failed:
        setup(fake.environment, fake.python())
    assert str(failed.value).endswith("Its last lines:\n    first line of trouble\n    last line of trouble")
    assert "last line of trouble" in capfd.readouterr().err
    assert ready(fake.environment) is None
    done = len(fake.entries())
    fake.behave()
    assert setup(fake.environment, fake.python())["installed"]
    expected = ["venv", "pip", "import vbench, clip"]
    assert fake.jobs()[done:] == (expected if step == "venv" else expected[1:])


def test_a_marker_of_other_requirements_or_a_damaged_one_does_not_count(fake: Fake):
    for text in ('{"requirements": ["vbench==0.1.4"], "python": "3.11.7"}', "{", "[]"):
        fake.set_up()
        assert ready(fake.environment) == "3.11.7"
        (fake.environment / MARKER).write_text(text)
        assert ready(fake.environment) is None
        assert setup(fake.environment, fake.python())["installed"]


@pytest.mark.parametrize("version", ["2.7.18", "3.9.18", "3.12.1", "3.13.0"])
def test_other_pythons_are_refused(fake: Fake, version: str):
    with pytest.raises(InvalidArgument) as refused:
        setup(fake.environment, fake.python(version))
    assert f"is Python {version}, which VBench 0.1.5 does not run on; give --python the path of a Python 3.10 or 3.11" in str(refused.value)  # fmt: skip # noqa: E501
    assert not fake.environment.exists()


def test_what_is_no_python_is_refused(fake: Fake):
    with pytest.raises(InvalidArgument, match=r"'/no/such/python' cannot be run .*; give --python the path"):
        setup(fake.environment, "/no/such/python")
    with pytest.raises(InvalidArgument, match="'true' does not tell a Python version; give --python the path"):
        setup(fake.environment, "true")


def test_an_environment_begun_with_another_python_is_refused(fake: Fake):
    fake.behave(fail="pip")
    with pytest.raises(VBenchFailed):
        setup(fake.environment, fake.python("3.10.13"))
    fake.behave()
    with pytest.raises(
        InvalidArgument, match=r"was begun with Python 3.10.13, but .* is 3.11.7; delete the folder, or"
    ):
        setup(fake.environment, fake.python("3.11.7"))
    assert setup(fake.environment, fake.python("3.10.13"))["python"] == "3.10.13"


def test_a_folder_that_setup_did_not_begin_is_refused(fake: Fake):
    fake.environment.mkdir()
    (fake.environment / "pyvenv.cfg").write_text("home = somebody's main environment")
    with pytest.raises(InvalidArgument, match="is in use for something else; give --folder a new folder"):
        setup(fake.environment, fake.python())
    assert fake.entries() == []
    with pytest.raises(InvalidArgument, match=r"cannot write in .*; give --folder a place that can be written"):
        setup(fake.environment / "pyvenv.cfg", fake.python())


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "ertacache" / "vbench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "ertacache" / "vbench"


def test_an_interrupt_ends_the_child(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    class Interrupting:
        def write(self, line: str) -> None:
            self.pid = int(line)
            raise KeyboardInterrupt

    stopped = Interrupting()
    fake.behave(hang="pip")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sys, "stderr", stopped)
        setup(fake.environment, fake.python())
    with pytest.raises(ProcessLookupError):
        os.kill(stopped.pid, 0)
