"""`ertacache zoo`: what it refuses before the work, and where a trained model goes."""

from pathlib import Path
from typing import Any

import pytest

from entry_point import refused
from ertacache_zoo import catalogue

BUNDLED = catalogue.folder("tiny-flux")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What trainings were started with, from an empty working folder; none is run."""
    started: list[Any] = []

    def train_model(name: str, work: Path, out: Path, compiled: bool) -> Path:
        started.append((name, work, out, compiled))
        return out

    monkeypatch.setattr("ertacache_zoo.train.train_model", train_model)
    monkeypatch.chdir(tmp_path)
    return started


@pytest.fixture
def no(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trained: list[Any]) -> Any:
    """Runs a command that must be refused before any training and any drawing; its message."""

    def draw(*_: Any, **__: Any) -> None:
        pytest.fail("the work has begun")

    for module in ("check", "check_clips"):
        monkeypatch.setattr(f"ertacache_zoo.{module}.check_model", draw)

    def run(*arguments: object) -> str:
        message = refused(monkeypatch, capsys, "zoo", *arguments)
        assert trained == []
        return message.removeprefix("ertacache: ").removesuffix("\n")

    return run


def train(*arguments: object) -> None:
    from typer.testing import CliRunner

    from ertacache_zoo.cli import zoo

    result = CliRunner().invoke(zoo, ["train", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_a_trained_model_goes_to_a_new_folder(trained: list[Any], tmp_path: Path):
    train("tiny-flux")
    train("tiny-wan", "--out", "other/place", "--work", "w", "--no-compile")
    assert trained == [
        ("tiny-flux", Path(".zoo"), Path("tiny-flux"), True),
        ("tiny-wan", Path("w"), Path("other/place"), False),
    ]
    assert (tmp_path / "other" / "place").is_dir()


def test_the_bundled_weights_are_replaced_only_when_that_was_said(trained: list[Any], no: Any, tmp_path: Path):
    (tmp_path / "link").symlink_to(BUNDLED)
    for out in (BUNDLED, BUNDLED / "vae", BUNDLED.parent, tmp_path / "link"):
        assert no("train", "tiny-flux", "--out", out) == (
            f"{out} lies among the bundled models; name another folder with --out, or say --overwrite-bundled"
        )
    assert no("train", "tiny-flux", "--out", "new", "--overwrite-bundled") == (
        "--out new and --overwrite-bundled name two places; give one of them"
    )
    train("tiny-flux", "--overwrite-bundled")
    assert trained == [("tiny-flux", Path(".zoo"), BUNDLED, True)]


def test_places_that_cannot_be_written_to(no: Any, tmp_path: Path):
    (tmp_path / "file").touch()
    assert no("train", "tiny-flux", "--work", "file") == "file is a file; name a folder"
    assert no("train", "tiny-flux", "--out", "file/x") == (
        "cannot write the folder file/x: a file is where one of its folders should be; name another place"
    )
    assert no("train", "tiny-flux", "--out", "/proc/new") == (
        "cannot write the folder /proc/new (No such file or directory); name another place"
    )
    (tmp_path / "sheet.png").mkdir()
    assert no("check", "tiny-flux", "--sheet", "sheet.png") == "sheet.png is a folder; name a file for the picture"
    assert no("check", "tiny-wan", "--sheet", "file/x.gif") == (
        "cannot write the picture file/x.gif: a file is where one of its folders should be; name another place"
    )
    assert no("check", "tiny-flux", "--sheet", "x.gif") == (
        "cannot draw a sheet to x.gif; name a .png, .jpg or .webp file"
    )
    assert no("check", "tiny-wan", "--sheet", "x") == (
        "cannot draw a sheet to x; name a .png, .jpg, .webp or .gif file"
    )


@pytest.mark.parametrize("command", ["train", "check"])
def test_a_name_that_no_bundled_model_has(command: str, no: Any):
    assert no(command, "tiny-sora") == (
        "no bundled model 'tiny-sora'; there are tiny-flux, tiny-flux-base, tiny-wan, tiny-cogvideox, tiny-open-sora, "
        "nano-flux; did you mean tiny-open-sora?"
    )


@pytest.mark.parametrize("captions", [0, -3])
def test_fewer_captions_than_one(captions: int, no: Any):
    message = no("check", "tiny-flux", "--captions", captions)
    assert message.endswith("Invalid value for '--captions': Input should be greater than or equal to 1")
