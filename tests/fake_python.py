"""A script in place of the Python interpreters that make and are VBench's environment."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ertacache.evaluation.vbench.environment import setup

# Stands for every interpreter: makes "environments" that are copies of itself, logs what it is asked, and does as
# FAKE says: `fail` names the step that fails, `version` what it claims to be, `score` what it gives each dimension.
FAKE_PYTHON = """\
#!%s
import json, os, shutil, signal, sys, time
from pathlib import Path

here = Path(sys.argv[0])
fake = json.loads(os.environ.get("FAKE", "{}"))
arguments = sys.argv[1:]
assert arguments.pop(0) == "-I"
code = arguments[1] if arguments[0] == "-c" else ""
if "sys.version_info" in code:
    print((here.parent / "version").read_text())
    sys.exit()
if arguments[-1] == "--version":
    sys.exit(0 if (here.parent / "pip").exists() else 1)
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(json.dumps({"exe": sys.argv[0], "argv": arguments, "env": dict(os.environ)}) + "\\n")
step = "import" if code else arguments[1] if arguments[0] == "-m" else arguments[-1 if "check" in arguments else -2]
if "check" in arguments:
    step = "check"
if fake.get("fail") == step:
    print("first line of trouble", flush=True)
    sys.exit("last line of trouble")
if fake.get("kill") == step:
    os.kill(os.getppid(), signal.SIGKILL)
    sys.exit(1)
if fake.get("hang") == step:
    print(os.getpid(), flush=True)
    time.sleep(300)
if step == "venv":
    inner = Path(arguments[2]) / "bin"
    inner.mkdir()
    shutil.copy(here, inner / "python")
    shutil.copy(here.parent / "version", inner / "version")
    (inner / "pip").touch()
elif "score" in arguments:
    value = fake.get("score", {}).get(step, 0.5)
    result = {"score": value, "videos": 3, "missing": fake.get("missing", 0), "per_video": [[step, value]]}
    Path(arguments[-1]).write_text(json.dumps(result))
    print("scored", step)
"""


class Fake:
    """The scripts and their log."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, monkeypatch
        self.log = folder / "log.jsonl"
        self.environment = folder / "environment"
        monkeypatch.setenv("FAKE_LOG", str(self.log))
        self.behave()

    def behave(self, **how: Any) -> None:
        self.patch.setenv("FAKE", json.dumps(how))

    def python(self, version: str = "3.11.7") -> str:
        path = self.folder / f"python{version}" / "python"
        path.parent.mkdir(exist_ok=True)
        path.write_text(FAKE_PYTHON % sys.executable)
        path.chmod(0o755)
        (path.parent / "version").write_text(version)
        return str(path)

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def jobs(self) -> list[str]:
        """What was asked, in order: venv, pip, import, check, or the dimension that was scored."""
        return [_job(entry["argv"]) for entry in self.entries()]

    def set_up(self) -> None:
        setup(self.environment, self.python())
        self.log.unlink()


def _job(argv: list[str]) -> str:
    if argv[0] in ("-m", "-c"):
        return argv[1]
    return "check" if "check" in argv else argv[-2]
