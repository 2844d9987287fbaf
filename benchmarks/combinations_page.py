"""Writes docs/combinations.md from the checks of tests/test_combinations.py."""

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "combinations.md"
VERSIONS = ("diffusers", "torch", "accelerate", "peft", "torchao", "gguf")
HEAD = """# What it combines with

Each row is a test with the real library, on a real pipeline class around small random weights, on a CPU: it proves
that nothing is called, answered or left behind wrongly, not what a combination does to the quality of trained weights.

For every row a profile is calibrated with the combination on, for the sites `output` and `guided`. Then, counted below
whatever this package attaches, the denoiser runs on the computed steps and on no other; the result equals what the
column *equals* says; a profile that computes every step gives the bits of the plain pipeline; and without the profile
the pipeline gives the bits of before.

- *before*: the combination is on when the profile is applied.
- *while applied*: it is put on, and where that can be done taken off again, while a profile is applied that was
  calibrated without it. "–" where it lies in the call or in the pipeline's class.
- *equals*: the same profile without the combination, where that computes the same function. Where it changes what the
  denoiser computes, formula (P) written out around the denoiser, without this package's run-time. The largest relative
  distance follows.

This page is written by `python benchmarks/combinations_page.py` and compared with the checks by
`make test-combinations`, which installs the last three of these beside the environment:
{versions}.
"""
COLUMNS = ("combination", "before", "while applied", "equals", "how", "notes", "pipeline")


def page(tables: dict[str, list[tuple[str, str, Any, str]]]) -> str:
    """The whole page.

    Args:
        tables: name, code, result and notes of each row, by heading.
    """
    versions = ", ".join(f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in VERSIONS)
    text = HEAD.format(versions=versions)
    for heading, rows in tables.items():
        text += f"\n## {heading}\n\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"
        for name, how, found, notes in rows:
            cells = (name, found.before, found.while_applied, found.result, how, notes, f"`{found.pipeline}`")
            text += f"| {' | '.join(cells)} |\n"
    return text


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    from every_combination import fresh_page

    PAGE.write_text(fresh_page(page))
