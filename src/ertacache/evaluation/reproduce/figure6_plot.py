"""Figure 6 as pictures: lines over the steps, and maps."""

import textwrap
from typing import Any

import numpy as np

_COLOURS = ("#1f5f8b", "#c2571a", "#4b8b3b")
_GREY = "#c3c9ce"


def draw_lines(axes: Any, document: dict[str, Any]) -> None:
    """RMS of each channel's error over the steps: those shown as maps in colour; predicted steps on a darker ground."""
    shown = document["shown"]
    predicted = [step for step, mark in enumerate(document["schedule"]) if mark != "#"]
    for n, step in enumerate(predicted):
        axes.axvspan(step - 0.5, step + 0.5, color="#dfe5ea", linewidth=0, label=None if n else "predicted step")
    for channel, values in enumerate(document["shift"]):
        if channel not in shown:
            axes.plot(values, color=_GREY, linewidth=1)
    if len(shown) < len(document["shift"]):
        axes.plot([], [], color=_GREY, label="other channels")
    for colour, channel in zip(_COLOURS, shown, strict=False):
        axes.plot(document["shift"][channel], color=colour, marker="o", markersize=3, label=f"channel {channel}")
    axes.set_xlim(-0.5, document["T"] - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step (0 = noisiest)")
    axes.set_ylabel("RMS of the cache error ε")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    count = len(document["prompts"])
    axes.set_title(
        f"{document['model']}, {document['K']} of {document['T']} steps computed, {count} prompt{'s' * (count != 1)}",
        loc="left", fontsize=10,
    )  # fmt: skip


def draw_maps(figure: Any, axes: Any, document: dict[str, Any]) -> None:
    """ε of the first prompt, first frame: a row for each channel, a column for each step, all on one scale."""
    maps = np.asarray(document["maps"])
    limit = float(np.quantile(np.abs(maps), 0.995)) or 1.0
    drawn: Any = None
    for row, channel in enumerate(document["shown"]):
        for column, step in enumerate(document["steps"]):
            place = axes[row, column]
            drawn = place.imshow(maps[row, column], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            place.set_xticks([])
            place.set_yticks([])
            if row == 0:
                place.set_title(f"step {step}", fontsize=8)
            if column == 0:
                place.set_ylabel(f"channel {channel}", fontsize=8)
    figure.colorbar(drawn, ax=axes, fraction=0.025, pad=0.01).set_label("ε", fontsize=8)
    prompt = textwrap.shorten(document["prompts"][0], 100, placeholder=" …").replace("$", r"\$")
    figure.suptitle(prompt, fontsize=8, x=0.01, ha="left")
