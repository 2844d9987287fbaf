"""Writes docs/methods.md from the list of compared methods: `python benchmarks/methods_page.py`."""

from pathlib import Path

from ertacache.baselines.baseline import Baseline
from ertacache.baselines.catalogue import METHODS

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
HEAD = """# Compared methods

Each is one file under `src/ertacache/baselines`. "Still runs" is what a step costs that the method caches; the knob is
what `ertacache compare --match-cost` turns. This page is written by `python benchmarks/methods_page.py`.

| name | method | source | still runs | knob | published settings for | batches |
|---|---|---|---|---|---|---|
"""


def line(method: Baseline) -> str:
    """One row of the table."""
    knob = f"`{method.knob.field}` {method.knob.low:g} to {method.knob.high:g}"
    published = {family: named for family, named in type(method).published().items() if named}
    settings = "; ".join(f"{family.removesuffix('Model')} ({' / '.join(named)})" for family, named in published.items())
    cells = (f"`{method.key}`", method.title, method.paper, method.work, knob, settings or "–", method.batch or "equal")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page() -> str:
    """The whole page."""
    extras = dict.fromkeys(method.extra for method in METHODS if method.extra)
    needs = [
        f"{', '.join(f'`{m.key}`' for m in METHODS if m.extra == extra)}: `pip install 'ertacache[{extra}]'`."
        for extra in extras
    ]
    return HEAD + "\n".join(map(line, METHODS)) + "\n\n" + "\n".join(needs) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
