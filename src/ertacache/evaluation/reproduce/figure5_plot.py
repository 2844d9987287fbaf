"""Figure 5 as a picture."""

from typing import Any

_LABELS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "clip_image": "CLIP, image to image"}


def draw(document: dict[str, Any]) -> Any:
    """One panel per metric over the number of calibration prompts, with the standard error of the mean.

    Args:
        document: as `figure5.run_figure` writes it.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    names = [name for name in _LABELS if name in document["rows"][0]]
    figure: Any = Figure(figsize=(3.6 * len(names), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        means = [row[name]["mean"] for row in document["rows"]]
        errors = [row[name]["std"] / len(row[name]["values"]) ** 0.5 for row in document["rows"]]
        axes.errorbar(document["sizes"], means, yerr=errors, color="#1f5f8b", marker="o", markersize=4, capsize=3)
        axes.set_xscale("log")
        axes.set_xticks(document["sizes"])
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("calibration prompts")
        axes.set_title(_LABELS[name], loc="left")
    figure.suptitle(f"{document['model']}, {document['K']} of {document['T']} steps computed", fontsize=10)
    return figure
