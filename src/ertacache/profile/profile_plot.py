"""A profile as a picture: schedule, time grid, the coefficients of formula (P) and what was judged."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ertacache.errors import InvalidArgument
from ertacache.extras import require
from ertacache.files import save_atomic
from ertacache.profile.content import Content
from ertacache.profile.foreign import number, printable
from ertacache.profile.profile_figures import confidence, gain, judged_plans, percent, prompts_of
from ertacache.profile.provenance import Provenance


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

    judged = judged_plans(profile.provenance)
    figure: Any = Figure(figsize=(9, 8 if judged else 6), layout="constrained")
    top, middle, bottom, *rest = figure.subplots(
        3 + bool(judged), 1, height_ratios=(0.5, 1, 1.4, 0.6)[: 3 + bool(judged)]
    )
    for axes in (middle, bottom):
        axes.sharex(top)
    for axes in (top, middle):
        axes.tick_params(labelbottom=False)
    _schedule(top, profile)
    _grid(middle, profile)
    _coefficients(bottom, profile)
    bottom.set_xlabel("step (0 = noisiest)")
    for axes in rest:
        _figures(axes, judged, profile.provenance)
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


def _figures(axes: Any, judged: Sequence[tuple[str, object]], facts: Provenance) -> None:
    """PSNR of the plan and of what it is held against: mean with its standard error, 10th percentile, worst prompt."""
    for y, (_, part) in enumerate(judged):
        colour = "#8a8f98" if y else "#1f5f8b"

        def value(key: str, part: object = part) -> float:
            found = number(part, "psnr", key)
            return math.nan if found is None else found

        axes.errorbar(
            value("mean"), y, xerr=abs(value("standard_error")), marker="o", capsize=3, color=colour, label="mean ± SE"
        )
        for key, marker, name in (("p10", "|", "10th percentile"), ("worst", "x", "worst prompt")):
            axes.plot(value(key), y, marker=marker, markersize=9, color=colour, linestyle="", label=name)
    axes.set_yticks(range(len(judged)), [name for name, _ in judged])
    axes.set_ylim(len(judged) - 0.5, -0.5)
    axes.set_xlabel(f"PSNR in dB on {prompts_of(facts)} judged prompts")
    if gained := gain(facts):
        sure = confidence(facts)
        axes.set_title(
            f"{gained} dB over fewer steps" + ("" if sure is None else f", {percent(sure)} confidence"),
            loc="left", fontsize=9,
        )  # fmt: skip
    own = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderpad": 0}
    axes.legend(own.values(), own.keys(), frameon=False, fontsize=8, ncols=3, **place)
