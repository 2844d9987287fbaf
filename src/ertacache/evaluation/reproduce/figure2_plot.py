"""Figure 2 as pictures: lines over the steps, and curves in a plane."""

import textwrap
from typing import Any

import numpy as np

_TRUE, _PREDICTED = "#1f5f8b", "#c2571a"
_CURVES = {
    "uncached": ("#1d2125", "o", "uncached"),
    "cached": (_PREDICTED, "s", "cached"),
    "adjusted": (_TRUE, "^", "cached, adjusted grid"),
}


def draw_changes(figure: Any, document: dict[str, Any]) -> None:
    """One panel per context: a thin line for each prompt, a thick one for their mean."""
    contexts = document["contexts"]
    places = figure.subplots(1, len(contexts), squeeze=False, sharey=True)[0]
    for n, (axes, name) in enumerate(zip(places, contexts, strict=True)):
        for key, colour, label in (("truth", _TRUE, "true"), ("predicted", _PREDICTED, "TeaCache's prediction")):
            values = np.asarray(contexts[name][key])
            steps = np.arange(1, values.shape[1] + 1)
            axes.plot(steps, values.T, color=colour, alpha=0.35, linewidth=0.7)
            axes.plot(steps, values.mean(0), color=colour, linewidth=2, label=label)
        axes.set_xlabel("step (0 = noisiest)")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        called = f", call {name!r}" if len(contexts) > 1 else ""
        prompts = len(contexts[name]["truth"])
        axes.set_title(f"(a) {document['model']}{called}, {prompts} prompts", loc="left", fontsize=10)
        if n == 0:
            axes.set_ylabel("relative l1 change of the output")
            axes.legend(frameon=False, fontsize=9)


def draw_plane(axes: Any, document: dict[str, Any], plane: dict[str, Any]) -> None:
    """The latents before every step and at the end, along the first two principal components."""
    for name, points in plane["curves"].items():
        x, y = np.asarray(points).T
        colour, marker, label = _CURVES[name]
        if name == "adjusted":
            label += f", strength {document['strength']:g}"
        axes.plot(x, y, color=colour, marker=marker, markersize=3, linewidth=1, label=label)
        axes.plot(x[-1], y[-1], color=colour, marker=marker, markersize=8, linestyle="")
    first, second = (f"{share:.1%}" for share in plane["shares"])
    axes.set_xlabel(f"first component, {first} of the variance", fontsize=9)
    axes.set_ylabel(f"second component, {second}", fontsize=9)
    prompt = textwrap.fill(textwrap.shorten(plane["prompt"], 84, placeholder=" …"), 46).replace("$", r"\$")
    axes.set_title(f"(b) {prompt}", loc="left", fontsize=8)
