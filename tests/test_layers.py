"""The rule of the layout: a folder imports only folders below it, core/ torch only, and no file waits for itself."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ertacache

SRC = Path(ertacache.__file__).parents[1]
#: From the ground up. `errors`, `extras` and `files` are the modules that all may use; the public face is no folder.
FOLDERS = (
    "errors", "extras", "files", "core", "metrics", "opensora", "profile", "pipelines", "runtime", "calibration",
    "quantization", "split", "baselines", "evaluation", "ray", "serving", "integrations", "cli",
)  # fmt: skip
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((SRC / "ertacache").rglob("*.py"))
}


def imports(source: str, known: set[str]) -> Iterator[str]:
    """Every module that `source` imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            modules = [f"{name}.{alias.name}" for alias in node.names if f"{name}.{alias.name}" in known]
            yield from modules or [name]


def folder(module: str) -> str:
    """The folder of ertacache that a module lies in; '' for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def rising(module: str, source: str) -> list[str]:
    """What `module` imports from folders that lie above it, or from the public face, which is above all."""
    own = [name for name in imports(source, set(MODULES)) if name.partition(".")[0] in ("ertacache", "ertacache_zoo")]
    return [
        name
        for name in own
        if name.startswith("ertacache_zoo") or not folder(name) or order(folder(name)) > order(folder(module))
    ]


def order(name: str) -> int:
    return FOLDERS.index(name)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "ertacache"])
def test_a_folder_imports_only_folders_below_it(module: str):
    assert rising(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_no_module_waits_for_itself():
    needs = {
        name: [other for other in imports(path.read_text(encoding="utf-8"), set(MODULES)) if other in MODULES]
        for name, path in MODULES.items()
        if name != "ertacache"
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path[path.index(name) :], name))
        for other in needs.get(name, ()):
            if other not in done:
                visit(other, (*path, name))
        done.add(name)

    for name in needs:
        visit(name, ())


@pytest.mark.parametrize("module", [name for name in MODULES if folder(name) == "core"])
def test_core_knows_torch_and_the_errors_only(module: str):
    source = MODULES[module].read_text(encoding="utf-8")
    tops = {name.partition(".")[0] for name in imports(source, set(MODULES))}
    assert tops - sys.stdlib_module_names <= {"torch", "ertacache"}


def test_the_corridor_is_short_and_every_folder_has_its_place():
    corridor = {path.name for path in (SRC / "ertacache").glob("*.py")}
    assert corridor <= {"__init__.py", "errors.py", "extras.py", "files.py"}
    assert {folder(name) for name in MODULES} - {""} <= set(FOLDERS)


def test_no_file_is_longer_than_a_reader_keeps_in_mind():
    long = {name: lines for name, path in MODULES.items() if (lines := path.read_text().count("\n")) > 300}
    assert long == {}


def test_the_checks_see_every_form_of_import():
    known = {"ertacache.core", "ertacache.profile.profile"}
    source = "import os, numpy\nfrom ertacache.profile import profile\ndef f():\n    from .. import errors\n"
    assert list(imports(source, known)) == ["os", "numpy", "ertacache.profile.profile", ".."]
    assert rising("ertacache.core.fit", "from ertacache.profile import profile") == ["ertacache.profile.profile"]
    assert rising("ertacache.core.fit", "import ertacache") == ["ertacache"]
    assert rising("ertacache.cli.app", "import ertacache_zoo.cli") == ["ertacache_zoo.cli"]
    assert rising("ertacache.runtime.player", "import ertacache.core.fit") == []
    assert len(MODULES) > 100
