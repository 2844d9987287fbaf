"""Benchmarks and examples are run by hand: what they take from the package is there still."""

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_a_script_imports_from_the_package_exists(script: Path):
    nodes = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
    asked = [
        (node.module, alias.name)
        for node in nodes
        if node.module and node.module.split(".")[0] in ("ertacache", "ertacache_zoo")
        for alias in node.names
    ]
    missing = [
        f"{module}.{name}"
        for module, name in asked
        if not hasattr(import_module(module), name) and find_spec(f"{module}.{name}") is None
    ]
    assert not missing
