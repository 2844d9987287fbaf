"""What could predict a step better than the history that the recommended plan has, before anything is built on it.

Run by hand: `python benchmarks/features.py`; minutes on one core. Records uncached runs, fits the outputs of skipped
steps to several sets of features on 28 of 40 prompts and states the error that is left on the others: the mean over
steps and prompts of the relative squared error, in dB, at gaps of 2, 3 and 5 steps. No error is carried on here: what
does not help in this will hardly help a plan. Rewrites benchmarks/results/features.json, whose table docs/frontier.md
shows (`--table` prints it).
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from frontier_cells import GUIDANCE
from torch import Tensor

from ertacache.calibration.calibrator import Calibrator
from ertacache.evaluation.row_figures import made_with
from ertacache.files import write_atomic
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache_zoo import catalogue

RESULTS = Path(__file__).parent / "results" / "features.json"
PROMPTS, FITTED, RIDGE, GAPS = 40, 28, 1e-5, (2, 3, 5)
CELLS = (("tiny-flux", 10.0), ("tiny-flux-base", 4.0), ("tiny-flux-base", 14.0), ("tiny-wan", 5.0))


class Runs:
    """Uncached runs of all prompts: outputs o, latents x and guidance directions d, [T, prompts, tokens, channels]."""

    def __init__(self, model: str, guidance: float) -> None:
        pipe = load_pipeline(model)
        pipe.set_progress_bar_config(disable=True)
        call = call_arguments(model, {GUIDANCE[model][0]: guidance})
        calibrator = Calibrator(
            pipe, catalogue.calibration_prompts(PROMPTS, model), choose=0.0, seed=0, batch_size=4, call=call
        )
        recordings, axis = calibrator.reference.recordings, calibrator.family.channel_axis

        def joined(parts: list[Tensor]) -> Tensor:
            whole = torch.cat([part.float() for part in parts], 1)
            return whole.movedim(axis if axis < 0 else axis + 1, -1).flatten(2, -2)

        self.o = joined([run.outputs for run in recordings])
        self.x = joined([run.latents[:-1] for run in recordings])
        directions = [run.directions for run in recordings if run.directions is not None]
        self.d = joined(directions) if directions else None


def features(runs: Runs) -> dict[str, Callable[[int, int], list[Tensor]]]:
    """Sets of features by name, each of the last computed step i and the gap between computed steps."""
    o, x, d = runs.o, runs.x, runs.d

    def history(levels: int, directions: int = 0) -> Callable[[int, int], list[Tensor]]:
        def at(i: int, gap: int) -> list[Tensor]:
            own = [o[i - level * gap] for level in range(levels) if i >= level * gap]
            if d is None:
                return own
            return own + [d[i - level * gap] for level in range(directions) if i >= level * gap]

        return at

    plan = history(3, 2)
    found = {
        "3 outputs": history(3),
        "the plan's": plan,
        "+ 4th output": history(4, 2),
        "+ 3rd direction": history(3, 3),
        "+ latent": lambda i, gap: [*plan(i, gap), x[i]],
        "+ latent, initial noise, first output": lambda i, gap: [*plan(i, gap), x[i], x[0], o[0]],
    }
    return {name: at for name, at in found.items() if d is not None or "direction" not in name}


def left(parts: list[Tensor], target: Tensor, each: bool) -> float:
    """Mean log10 of the relative squared error on prompts that were not fitted, times ten.

    Args:
        parts: features [prompts, tokens, channels]. each: a coefficient of its own for every channel.
    """
    stacked, size = torch.stack(parts, -1), target.pow(2).sum((1, 2))
    weight = size[:FITTED].rsqrt()[:, None, None]
    channels = range(target.shape[-1]) if each else [slice(None)]
    error = torch.zeros(PROMPTS - FITTED)
    for c in channels:
        one, wanted = stacked[:, :, c], target[:, :, c]
        rows = (one[:FITTED] * weight.reshape(-1, *[1] * (one.ndim - 1))).reshape(-1, len(parts))
        fitted = solved(rows, (wanted[:FITTED] * weight.reshape(-1, *[1] * (wanted.ndim - 1))).reshape(-1))
        error += (wanted[FITTED:] - one[FITTED:] @ fitted).pow(2).flatten(1).sum(1)
    return float(10 * (error / size[FITTED:]).log10().mean())


def solved(rows: Tensor, wanted: Tensor) -> Tensor:
    """Least squares, with a little ridge in units of each feature."""
    gram = rows.T @ rows
    scale = gram.diagonal().sqrt()
    matrix = gram / scale[:, None] / scale + RIDGE * torch.eye(len(scale))
    return torch.linalg.solve(matrix, rows.T @ wanted / scale) / scale


def measured(runs: Runs) -> dict[str, list[float]]:
    """By set of features, the error left at each gap."""
    T, found = len(runs.o), dict[str, list[float]]()
    sets = {name: (at, False) for name, at in features(runs).items()}
    sets["the plan's, per channel"] = (sets["the plan's"][0], True)
    for name, (at, each) in sets.items():
        for gap in GAPS:
            steps = [(i, j) for i in range(2 * gap, T - 1, gap) for j in range(i + 1, min(i + gap, T))]
            values = [left(at(i, gap), runs.o[j], each) for i, j in steps]
            found.setdefault(name, []).append(round(sum(values) / len(values), 2))
    return found


def table(result: dict[str, Any]) -> str:
    """Gains over the plan's features in dB, positive where less error is left."""
    names = list(dict.fromkeys(name for row in result["rows"] for name in row["left"]))
    lines = ["| features | " + " | ".join(f"{row['model']}, {row['guidance']:g}" for row in result["rows"]) + " |"]
    lines.append("|---" * (1 + len(result["rows"])) + "|")
    for name in names:
        cells = []
        for row in result["rows"]:
            values, plan = row["left"].get(name), row["left"]["the plan's"]
            gains = " / ".join(f"{b - a:+.1f}" for a, b in zip(values or [], plan, strict=bool(values)))
            cells.append(gains if name != "the plan's" else " / ".join(f"{value:.1f}" for value in plan))
        lines.append(f"| {name} | " + " | ".join(cell or "–" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of the result file, and measure nothing")
    if not parser.parse_args().table:
        torch.set_num_threads(1)
        rows = []
        for model, guidance in CELLS:
            rows.append({"model": model, "guidance": guidance, "left": measured(Runs(model, guidance))})
            print(json.dumps(rows[-1]), flush=True)
        header = {**made_with(), "command": "python benchmarks/features.py", "prompts": PROMPTS, "fitted": FITTED}
        text = json.dumps({"header": {**header, "gaps": list(GAPS)}, "rows": rows}, indent=1)
        write_atomic(RESULTS, (text + "\n").encode())
    print(table(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
