"""core/ is the bottom layer: torch, the standard library, itself and the errors."""

import ast
import sys
from pathlib import Path

import pytest

import ertacache.core

ALLOWED = ("torch", "ertacache.core", "ertacache.errors")
MODULES = sorted(Path(ertacache.core.__file__).parent.glob("*.py"))


def foreign_imports(source: str) -> list[str]:
    """The modules that `source` imports, wherever in it, and core may not."""
    imported: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported.append("." * node.level + (node.module or ""))
    return [
        name
        for name in imported
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED)
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_core_imports_only_what_lies_below_it(path: Path):
    assert foreign_imports(path.read_text(encoding="utf-8")) == []


def test_the_check_sees_every_form_of_import():
    top = "import os, numpy\nfrom ertacache import profile\n"
    source = top + "def f():\n    from .. import errors\n    import torchvision"
    assert foreign_imports(source) == ["numpy", "ertacache", "..", "torchvision"]
    assert foreign_imports("import torch.nn\nfrom ertacache.core.schedule import Schedule") == []
    assert len(MODULES) >= 9
