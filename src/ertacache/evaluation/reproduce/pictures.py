"""A figure as files."""

from pathlib import Path
from typing import Any

from ertacache.files import save_atomic

_DPI = 160


def save_pictures(figure: Any, path: Path) -> list[str]:
    """A `matplotlib.figure.Figure` as PNG and SVG, the same bytes each time; `path` is without an ending.

    Returns:
        The names of both files.
    """
    from matplotlib import rc_context

    png, svg = (path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg"))
    # Without the salt, the names of its parts would change from one drawing to the next.
    with rc_context({"svg.hashsalt": path.name}):
        save_atomic(png, lambda file: figure.savefig(file, format="png", dpi=_DPI))
        save_atomic(svg, lambda file: figure.savefig(file, format="svg", dpi=_DPI, metadata={"Date": None}))
    return [str(png), str(svg)]
