"""A profile as a picture: schedule, time grid and the coefficients of formula (P)."""

from pathlib import Path
from typing import Any

from ertacache.errors import InvalidArgument
from ertacache.extras import require
from ertacache.profile.profile import Profile


def draw_profile(profile: Profile, path: Path) -> None:
    """Write a PNG, SVG or PDF of a profile.

    Raises:
        MissingExtra: matplotlib is not installed.
        InvalidArgument: an unknown kind of picture.
    """
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InvalidArgument(f"cannot draw to {path}; name a .png, .svg or .pdf file")
    require("the picture of a profile", "matplotlib")
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(9, 6), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(0.5, 1, 1.4))
    _schedule(top, profile)
    _grid(middle, profile)
    _coefficients(bottom, profile)
    bottom.set_xlabel("step (0 = noisiest)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def _schedule(axes: Any, profile: Profile) -> None:
    colours = ["#1f5f8b" if computed else "#d9e4ec" for computed in profile.schedule.computed]
    axes.bar(range(profile.schedule.T), 1, width=0.9, color=colours)
    axes.set_yticks([])
    axes.set_title(
        f"{profile.schedule.K} of {profile.schedule.T} steps computed (dark), site {profile.site}", loc="left"
    )


def _grid(axes: Any, profile: Profile) -> None:
    axes.plot(profile.base_sigmas.tolist(), color="#8a8f98", label="solver's grid")
    if not bool((profile.sigmas == profile.base_sigmas).all()):
        axes.plot(profile.sigmas.tolist(), color="#c2571a", label="adjusted grid")
    axes.set_ylabel("σ")
    axes.legend(frameon=False)


def _coefficients(axes: Any, profile: Profile) -> None:
    """Mean over channels or elements of each coefficient, on predicted steps."""
    predictor, steps = profile.predictor, list(profile.schedule.predicted_steps)
    for m, target in enumerate(predictor.targets):
        for s, source in enumerate(predictor.sources):
            for level in range(predictor.levels):
                values = predictor.a[:, m, s, level].reshape(predictor.T, -1).mean(1)[steps]
                if bool(values.any()):
                    name = (
                        f"{target} from {source}, {level + 1} back"
                        if predictor.levels > 1
                        else f"{target} from {source}"
                    )
                    axes.plot(steps, values.tolist(), marker="o", markersize=3, linewidth=1, label=name)
    axes.axhline(0, color="#8a8f98", linewidth=0.6)
    axes.set_ylabel("coefficient a")
    if steps:
        axes.legend(frameon=False, fontsize=8, ncols=2)
