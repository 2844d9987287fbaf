"""What outputs of a quantised model say of its errors: step by step, and of the deviation that they add up to.

Least squares with a bias for each channel, fitted to two thirds of the fitted prompts of `benchmarks/quantised.py` and
judged by the others, on the quantised model's own recorded run: no corrected run is made. For solvers x' = x + B o.

    python benchmarks/quantised_explained.py --work FOLDER
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from quantised_setting import Counts, Setting
from torch import Tensor

from ertacache.pipelines.loading import load_pipeline

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


def explained(setting: Setting) -> Iterator[str]:
    """The rows of one model."""
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
        yield f"| {name} | {share:.2f} | {decibels(torch.einsum('t,tbsc->bsc', B, rest)):+.1f} dB |"
    everything = [*own] if directions is None else [*own, *directions]
    yield f"| all at once, to the final deviation | | {decibels(left(deviation, everything)):+.1f} dB |"
    means = deviation.mean(1).square().sum() * deviation.shape[1] / deviation.square().sum()
    yield f"| channel means of single prompts | | {float(means):.2f} of its energy |"


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny-flux,tiny-flux-base")
    parser.add_argument("--scheme", default="w4a4")
    parser.add_argument("--work", type=Path, required=True, help="that of benchmarks/quantised.py")
    given = parser.parse_args()
    for model in given.models.split(","):
        setting = Setting(model, given.scheme, load_pipeline(model), Counts(24, 8, 32), given.work)
        print(
            f"{model} {given.scheme}\n\n| fitted on | share of a step's error left | final deviation |\n|---|---|---|"
        )
        print("\n".join(explained(setting)) + "\n", flush=True)


if __name__ == "__main__":
    main()
