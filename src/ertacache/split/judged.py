"""What prompts say of an order of two models, beside the paper's grid and fewer steps of the large model."""

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ertacache.calibration.held_out import Part, measure_fewer_steps
from ertacache.errors import CalibrationError, UnsupportedPipeline
from ertacache.metrics import figures
from ertacache.split.prices import NONE, price, switch_of, switched
from ertacache.split.recorded import SplitRuns

logger = logging.getLogger(__name__)

#: Where the released runs of Hybrid SD switch, as shares of the steps: 0, 5, 10 and 20 of 25.
_GRID = (0.0, 0.2, 0.4, 0.8)


def grid_of(T: int) -> list[int]:
    """The paper's hand grid of switches for T steps, without the large model alone."""
    return sorted({round(share * T) for share in _GRID})


def row_of(runs: SplitRuns, grams: Tensor, models: Sequence[int], part: Part) -> dict[str, Any]:
    """The figures of an order on one part of the prompts, see `SplitProfile`."""
    expected = round(price(grams, [models])[0], 6)
    return _row(name_of(models), models, runs.share(models), expected, runs.measured(part, models))


def name_of(models: Sequence[int]) -> str:
    """An order in words."""
    switch = switch_of(models)
    if switch is None:
        return f"models {''.join(map(str, models))}"
    return f"switch {switch}" if switch else "small model alone"


def judged_rows(runs: SplitRuns, grams: Tensor, models: tuple[int, ...]) -> list[dict[str, Any]]:
    """Rows of an order, of the paper's grid, and of fewer steps of the large model at the same cloud cost.

    Raises:
        CalibrationError: runs of the order end in NaN or infinity.
    """
    rows = [row_of(runs, grams, models, "judged")]
    if rows[0]["latent_log10_error"] is None:
        raise CalibrationError(
            f"judged runs end in NaN or infinity with {rows[0]['name']}; run the pipeline in a wider dtype"
        )
    grid = [switched(runs.T, s) for s in grid_of(runs.T)]
    rows += [row_of(runs, grams, order, "judged") for order in grid if order != models]
    K = models.count(0)
    if 0 < K < runs.T:
        try:
            rows.append(_row(f"large model, {K} steps", (), K / runs.T, None, measure_fewer_steps(runs, K)))
        except UnsupportedPipeline as error:
            logger.warning("fewer steps at the same cost are not measured: %s", error)
    return rows


def _row(
    name: str, models: Sequence[int], share: float, expected: float | None, measured: Mapping[str, list[float]]
) -> dict[str, Any]:
    error = statistics.fmean(measured["error"])
    known = math.isfinite(error)
    return {
        "name": name, "models": list(models), "cloud_share": round(share, 6), "price": expected,
        "latent_log10_error": round(max(error, NONE), 6) if known else None,
        **{
            key: dict(figures(measured[key])) if measured[key]
            else dict.fromkeys(("mean", "std", "standard_error", "p10", "worst"))
            for key in ("psnr", "ssim")
        },
    }  # fmt: skip
