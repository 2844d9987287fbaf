"""The command line as a terminal runs it."""

import sys

import pytest

import ertacache.cli.app as cli


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the entry point, which must exit with 2 and say why on standard error; what it says."""
    monkeypatch.setattr(sys, "argv", ["ertacache", *(str(argument) for argument in arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    return capsys.readouterr().err
