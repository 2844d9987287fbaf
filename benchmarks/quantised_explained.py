"""What outputs of a quantised model say of its errors: step by step, and of the deviation that they add up to.

Least squares with a bias for each channel, fitted to two thirds of the fitted prompts of `benchmarks/quantised.py` and
judged by the others, on the quantised model's own recorded run: no corrected run is made. For solvers x' = x + B o.

`python benchmarks/quantised_explained.py --work FOLDER` rewrites benchmarks/results/quantised_explained.json, which
docs/quantised-models.md quotes.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from quantised_setting import Counts, Setting
from torch import Tensor

from ertacache.evaluation.row_figures import made_with
from ertacache.files import write_atomic
from ertacache.pipelines.loading import load_pipeline

RESULTS = Path(__file__).parent / "results" / "quantised_explained.json"

#: Outputs that each step's error is regressed on: this step's, those before it, and guidance directions.
FEATURES = {"bias": (0, 0), "õ_i": (1, 0), "õ_i, õ_{i−1}": (2, 0), "four outputs": (4, 0), "õ_i, c − u": (1, 1)}


def recorded(setting: Setting) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """B [T], quantised and exact outputs [T, N, *] float64 of the fitted prompts, and guidance directions."""
    with setting.owned():
        calibrator = setting.calibrator
    own, exact = calibrator.reference.recordings, calibrator.taught
    directions = [one.directions.double() for one in own if one.directions is not None]
    return (
        calibrator.reference.sigmas.double().diff(),
        torch.cat([one.outputs.double() for one in own], 1),
        torch.cat([one.outputs.double() for one in exact], 1),
        torch.cat(directions, 1) if len(directions) == len(own) else None,
    )


def left(y: Tensor, features: list[Tensor]) -> Tensor:
    """What a fit leaves of y [N, positions, C]; judged prompts are the last third."""
    fitted = len(y) * 2 // 3
    y = y - y[:fitted].mean((0, 1))
    if not features:
        return y
    A = torch.stack([one - one[:fitted].mean((0, 1)) for one in features], -1)
    a = A[:fitted].reshape(-1, len(features))
    gram = a.T @ a
    gram += 1e-3 * torch.diag(gram.diagonal())
    return y - A @ torch.linalg.solve(gram, a.T @ y[:fitted].reshape(-1))


def explained(setting: Setting) -> Iterator[dict[str, Any]]:
    """The rows of one model: the share of the error's energy that is left in a step, and what the deviation loses."""
    B, own, exact, directions = recorded(setting)
    errors, T, judged = own - exact, len(own), slice(own.shape[1] * 2 // 3, None)
    deviation = torch.einsum("t,tbsc->bsc", B, errors)

    def decibels(rest: Tensor) -> float:
        shares = rest[judged].square().sum((1, 2)) / deviation[judged].square().sum((1, 2))
        return float(-10 * shares.log10().mean())

    for name, (outputs, guided) in FEATURES.items():
        if guided and directions is None:
            continue
        rest = torch.stack([
            left(errors[i], [own[j] for j in range(max(0, i - outputs + 1), i + 1)] * (outputs > 0)
                 + ([directions[i]] if guided and directions is not None else []))
            for i in range(T)
        ])  # fmt: skip
        share = float(rest[:, judged].square().sum() / errors[:, judged].square().sum())
        gain = decibels(torch.einsum("t,tbsc->bsc", B, rest))
        yield {"fitted on": name, "left of a step": round(share, 3), "dB": round(gain, 2)}
    everything = [*own] if directions is None else [*own, *directions]
    yield {"fitted on": "all at once, to the final deviation", "dB": round(decibels(left(deviation, everything)), 2)}
    means = deviation.mean(1).square().sum() * deviation.shape[1] / deviation.square().sum()
    yield {"fitted on": "nothing: share of channel means in the deviation", "share": round(float(means), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny-flux,tiny-flux-base")
    parser.add_argument("--scheme", default="w4a4")
    parser.add_argument("--work", type=Path, required=True, help="that of benchmarks/quantised.py")
    given, found = parser.parse_args(), dict[str, Any]()
    for model in given.models.split(","):
        setting = Setting(model, given.scheme, load_pipeline(model), Counts(24, 8, 32), given.work)
        found[model] = list(explained(setting))
        print(model, *found[model], sep="\n", flush=True)
    facts = {**made_with(), "scheme": given.scheme, "rows": found}
    write_atomic(RESULTS, (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
