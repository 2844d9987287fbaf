"""The paper's Figure 6: the cache error of single channels, step by step."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ertacache.baselines.ertacache import OfflinePolicy
from ertacache.calibration.progress import run_progress
from ertacache.calibration.prompts import Prompts
from ertacache.core.analysis import decompose
from ertacache.core.precision import exact
from ertacache.core.schedule import Schedule
from ertacache.errors import UnsupportedPipeline
from ertacache.evaluation.execute import execute
from ertacache.evaluation.reproduce.figure6_plot import draw_lines, draw_maps
from ertacache.evaluation.reproduce.figure_plan import bench_of, cached_plan
from ertacache.evaluation.reproduce.request import Ready, Request
from ertacache.pipelines.models import denoisers_of, family_for

#: Channels and predicted steps whose error is shown as a map.
_CHANNELS, _STEPS = 3, 6


def measure(ready: Ready, request: Request) -> dict[str, Any]:
    """ε_i = (what the solver receives in the cached run) − (the same in the uncached run), as in `core.analysis`.

    Returns:
        `shift`: [C][T] RMS of ε over prompts, frames and places. `maps`: [3][n][h][w] ε of the first prompt's first
        frame on the channels `shown`, whose error is the largest, at the predicted steps `steps`.
    """
    squares, first = list[Tensor](), None
    with run_progress(title="figure6", expected=40 + 2 * len(ready.prompts)) as progress:
        plan = cached_plan(ready, request, bench_of(ready, progress))
        method = OfflinePolicy(site=request.site, profile=plan)
        for one in Prompts(ready.prompts, ready.seed).batches(1):
            runs = [execute(ready.pipe, m, one, ready.call, keep_outputs=True, decode=False)[1] for m in (method, None)]
            used, true = (by_channel(ready, torch.stack(run.outputs)[:, 0]) for run in runs)
            squares.append(channel_shift(runs[1].sigmas, used, true, plan.schedule).square())
            first = used - true if first is None else first
            progress("prompt")
    shift = torch.stack(squares).mean(0).sqrt()
    shown = shift.square().mean(1).topk(min(_CHANNELS, len(shift))).indices.sort().values.tolist()
    predicted = plan.schedule.predicted_steps
    steps = [predicted[n] for n in _spread(len(predicted), _STEPS)]
    maps = [] if first is None else [[_rounded(first[step, channel, 0]) for step in steps] for channel in shown]
    return {
        "K": plan.schedule.K, "schedule": str(plan.schedule), "prompts": list(ready.prompts), "shift": shift.tolist(),
        "shown": shown, "steps": steps, "maps": maps,
    }  # fmt: skip


def by_channel(ready: Ready, outputs: Tensor) -> Tensor:
    """Outputs [T, *] of one prompt as [T, C, F, h, w]; packed ones of FLUX are taken apart.

    Raises:
        UnsupportedPipeline: tokens that are no picture of the call's size.
    """
    axis = family_for(denoisers_of(ready.pipe)[0], outputs.ndim).channel_axis
    if outputs.ndim == 3:
        return unpacked(outputs, int(ready.call["height"]), int(ready.call["width"]))[:, :, None]
    channels_first = outputs.movedim(axis, 1)
    return channels_first if channels_first.ndim == 5 else channels_first[:, :, None]


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens [T, N, 4C], each of 2 x 2 places as FLUX packs them, as [T, C, h, w].

    Args:
        height, width: of the picture, in pixels.

    Raises:
        UnsupportedPipeline: they fill no such picture.
    """
    T, N, size = tokens.shape
    rows = max(1, round((N * height / width) ** 0.5))
    if N % rows or size % 4 or rows * width != N // rows * height:
        raise UnsupportedPipeline(
            f"the latent has {N} tokens of {size} values, which are no picture of {height} x {width} in patches of 2 x "
            "2; figure6 needs latents with height and width, or those of FLUX"
        )
    parts = tokens.reshape(T, rows, N // rows, size // 4, 2, 2)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(T, size // 4, 2 * rows, 2 * N // rows)


def channel_shift(sigmas: Tensor, used: Tensor, true: Tensor, schedule: Schedule) -> Tensor:
    """The feature shift of `decompose` [C, T], for each channel of outputs [T, C, *] by itself."""
    pairs = zip(used.split(1, 1), true.split(1, 1), strict=True)
    return torch.stack([decompose(sigmas, one, other, schedule).feature_shift for one, other in pairs])


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` places, the first and the last among them."""
    shown = min(count, most)
    return [round(n * (count - 1) / max(shown - 1, 1)) for n in range(shown)]


def _rounded(picture: Tensor) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in exact(picture).tolist()]


def tell(document: dict[str, Any]) -> list[str]:
    """The error of each channel, and where it is largest."""
    shift = torch.tensor(document["shift"], dtype=torch.float64)
    lines = [
        f"{document['K']} of {document['T']} steps computed, {len(document['prompts'])} prompts; RMS of the error over "
        "steps, and the step where it is largest"
    ]
    for channel, values in enumerate(shift):
        largest = int(values.argmax())
        lines.append(f"channel {channel:2}: {values.square().mean().sqrt():.4f}, {values[largest]:.4f} at {largest}")
    return lines


def draw(document: dict[str, Any], folder: Path) -> Any:
    """The error of every channel over the steps, and maps of three of them."""
    from matplotlib.figure import Figure

    rows, columns = len(document["shown"]), len(document["steps"])
    h, w = len(document["maps"][0][0]), len(document["maps"][0][0][0])
    width = 9.0
    tall = 0.82 * width / max(columns, 4) * h / w + 0.12
    figure: Any = Figure(figsize=(width, 3.2 + rows * tall + 0.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3.2, rows * tall + 0.5))
    draw_lines(top.subplots(), document)
    draw_maps(bottom, bottom.subplots(rows, columns, squeeze=False), document)
    return figure
