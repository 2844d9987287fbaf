"""A profile as a picture: schedule, time grid and the coefficients of formula (P)."""

from pathlib import Path
from typing import Any

from ertacache.errors import InvalidArgument
from ertacache.extras import require
from ertacache.files import save_atomic
from ertacache.profile.content import Content
from ertacache.profile.profile_summary import printable


def coefficient_lines(profile: Content) -> list[tuple[str, list[float]]]:
    """The weights a of past outputs, each by its name: mean over channels or elements on every predicted step."""
    predictor, steps = profile.predictor, list(profile.schedule.predicted_steps)
    lines: list[tuple[str, list[float]]] = []
    for m, target in enumerate(predictor.targets):
        for s, source in enumerate(predictor.sources):
            for level in range(predictor.levels):
                values = predictor.a[:, m, s, level].reshape(predictor.T, -1).mean(1)[steps]
                if bool(values.any()):
                    name = f"{printable(target)} from {printable(source)}"
                    lines.append((f"{name}, {level + 1} back" if predictor.levels > 1 else name, values.tolist()))
    return lines


def draw_profile(profile: Content, path: Path | None = None) -> Any:
    """The `matplotlib.figure.Figure` of a profile, also written as PNG, SVG or PDF where a path is given.

    Raises:
        MissingExtra: matplotlib is not installed.
        InvalidArgument: an unknown kind of picture.
    """
    if path is not None and path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InvalidArgument(f"cannot draw to {path}; name a .png, .svg or .pdf file")
    require("the picture of a profile", "matplotlib")
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(9, 6), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(0.5, 1, 1.4))
    _schedule(top, profile)
    _grid(middle, profile)
    _coefficients(bottom, profile)
    bottom.set_xlabel("step (0 = noisiest)")
    if path is not None:
        kind = path.suffix.lower()[1:]
        save_atomic(path, lambda file: figure.savefig(file, format=kind, dpi=140))
    return figure


def _schedule(axes: Any, profile: Content) -> None:
    colours = ["#1f5f8b" if computed else "#d9e4ec" for computed in profile.schedule.computed]
    axes.bar(range(profile.schedule.T), 1, width=0.9, color=colours)
    axes.set_yticks([])
    axes.set_title(
        f"{profile.schedule.K} of {profile.schedule.T} steps computed (dark), site {profile.site}", loc="left"
    )


def _grid(axes: Any, profile: Content) -> None:
    axes.plot(profile.base_sigmas.tolist(), color="#8a8f98", label="solver's grid")
    if not bool((profile.sigmas == profile.base_sigmas).all()):
        axes.plot(profile.sigmas.tolist(), color="#c2571a", label="adjusted grid")
    axes.set_ylabel("σ")
    axes.legend(frameon=False)


def _coefficients(axes: Any, profile: Content) -> None:
    """Mean over channels or elements of each coefficient, on predicted steps."""
    lines = coefficient_lines(profile)
    for name, values in lines:
        # A dollar sign of a foreign name would start a formula.
        label = name.replace("$", r"\$")
        axes.plot(profile.schedule.predicted_steps, values, marker="o", markersize=3, linewidth=1, label=label)
    axes.axhline(0, color="#8a8f98", linewidth=0.6)
    axes.set_ylabel("coefficient a")
    if lines:
        axes.legend(frameon=False, fontsize=8, ncols=2)
