"""What corrections of a quantised denoiser do on a toy whose exact outputs are known: TCEC's gain and its rivals.

Run by hand: `python benchmarks/tcec_toy.py`; a minute on one core. The denoiser is the exact one of a mixture of two
Gaussians in every coordinate, stepped by DDIM (epsilon) and by flow matching Euler. It errs by two fifths of its
output's root mean square, as 4 bits do: independent noise, or noise and a gain that explains 0.7 of the error's energy.
Corrections are fitted on some prompts, along the exact trajectory, and judged on others by the final deviation over
that of the uncorrected run. Rewrites benchmarks/results/tcec_toy.json, whose table docs/quantised-models.md shows
(`--table` prints it).
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ertacache.core.compensation import Compensation
from ertacache.core.compensation_fit import CompensationSums, Estimator, compensation
from ertacache.core.propagation import contributions, ddim_steps, flow_euler_steps, propagated, windowed
from ertacache.evaluation.row_figures import made_with
from ertacache.files import write_atomic

RESULTS = Path(__file__).parent / "results" / "tcec_toy.json"
T, PROMPTS, CHANNELS, POSITIONS, SEEDS = 20, 64, 4, 64, 8
SIZE, EXPLAINED = 0.4, 0.7
MEANS, SPREAD = torch.tensor([0.5, 0.8, 1.1, 1.4]).double()[:, None], 0.6
SIGMAS = torch.linspace(0.98, 0.02, T + 1).tolist()
SOLVERS = ("DDIM", "flow")
#: Errors of the denoiser, with the share of their energy that a gain explains.
ERRORS = {"independent": 0.0, "explained": EXPLAINED}
ESTIMATORS: tuple[Estimator, ...] = ("bias", "gain", "ptqd-gain", "ptqd", "affine")
WEIGHTS = (0.25, 0.5, 1.0)


class Toy:
    """One solver with one kind of errors; x = α x0 + σ ε, with α² + σ² = 1 for DDIM and α + σ = 1 for the flow.

    Attributes:
        solver: "DDIM" or "flow".
        explained: the share of the error's energy that is K õ, with one K for all steps; the rest is noise.
    """

    def __init__(self, solver: str, explained: float) -> None:
        self.solver, self.explained = solver, explained
        alphas = [1 - sigma * sigma for sigma in SIGMAS]
        self.steps = ddim_steps(alphas, "epsilon") if solver == "DDIM" else flow_euler_steps(SIGMAS)

    def exact(self, i: int, x: Tensor) -> Tensor:
        """What a perfectly trained denoiser gives for x [N, C, P] at step i."""
        sigma = SIGMAS[i]
        alpha = math.sqrt(1 - sigma * sigma) if self.solver == "DDIM" else 1 - sigma
        variance = (alpha * SPREAD) ** 2 + sigma**2
        clean = alpha * SPREAD**2 * x + MEANS * sigma**2 * torch.tanh(alpha * MEANS * x / variance)
        clean = clean / variance
        noise = (x - alpha * clean) / sigma
        return noise if self.solver == "DDIM" else noise - clean

    def quantised(self, i: int, x: Tensor, noise: Tensor) -> Tensor:
        """õ with õ − o = K õ + noise."""
        o = self.exact(i, x)
        K = SIZE * math.sqrt(self.explained)
        return (o + SIZE * math.sqrt(1 - self.explained) * o.square().mean().sqrt() * noise) / (1 - K)


class Run(NamedTuple):
    """Latents [T+1] and what the denoiser gave [T]."""

    latents: list[Tensor]
    raw: list[Tensor]


def run(toy: Toy, x: Tensor, noise: Tensor | None, correct: Callable[[int, list[Tensor]], Tensor] | None = None) -> Run:
    """Of exact outputs where `noise` [T, N, C, P] is None; `correct` makes of step and raw outputs what is received."""
    latents, raw = [x], list[Tensor]()
    for i, step in enumerate(toy.steps):
        raw.append(toy.exact(i, latents[i]) if noise is None else toy.quantised(i, latents[i], noise[i]))
        received = raw[i] if correct is None else correct(i, raw)
        latents.append(step.A * latents[i] + step.B * received)
    return Run(latents, raw)


def by_table(table: Compensation) -> Callable[[int, list[Tensor]], Tensor]:
    """The corrections of a table."""
    return lambda i, raw: table.apply(i, raw[i], raw[i - 1] if i else None, 1)


def tables(toy: Toy, sums: list[CompensationSums]) -> dict[str, Compensation]:
    """Every correction that edits outputs, by its name in the result file."""
    A, B = [step.A for step in toy.steps], [step.B for step in toy.steps]
    found = {
        f"{estimator}, {sharing}": compensation(sums, estimator, sharing)
        for estimator in ESTIMATORS
        for sharing in ("scalar", "channel")
    }
    gain = found["gain, scalar"]
    for weight in WEIGHTS:
        found[f"gain, scalar, and {weight} of the step before"] = gain.with_previous(A, B, weight)
    both = gain.with_previous(A, B, 1.0)
    found["the step before alone"] = Compensation(
        torch.ones_like(both.gain), both.previous, torch.zeros_like(both.bias)
    )
    return found


def draw(seed: int) -> tuple[Tensor, Tensor]:
    """Starting noise [N, C, P] and that of the errors [T, N, C, P], half of the prompts to fit and half to judge."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2 * PROMPTS, CHANNELS, POSITIONS)
    drawn = torch.randn(T + 1, *shape, generator=generator, dtype=torch.float64)
    return drawn[0], drawn[1:]


def measure(solver: str, errors: str, seed: int) -> dict[str, float]:
    """Final deviation of every correction over that of the uncorrected run, and what the theory says of the latter."""
    toy, (x, noise) = Toy(solver, ERRORS[errors]), draw(seed)
    fit, judge = slice(0, PROMPTS), slice(PROMPTS, None)
    sums, followed = list[CompensationSums](), run(toy, x[fit], None)
    for i in range(T):
        sums.append(CompensationSums(1))
        sums[i].update(followed.raw[i], toy.quantised(i, followed.latents[i], noise[i, fit]))
    reference, plain = run(toy, x[judge], None), run(toy, x[judge], noise[:, judge])

    def ratio(latent: Tensor) -> float:
        last = reference.latents[-1]
        return float((latent - last).norm() / (plain.latents[-1] - last).norm())

    found = tables(toy, sums)
    ratios = {
        name: ratio(run(toy, x[judge], noise[:, judge], by_table(one)).latents[-1]) for name, one in found.items()
    }
    K = [1 - float(row) for row in found["gain, scalar"].gain]
    late = sum(contributions(toy.steps, [k * raw for k, raw in zip(K, plain.raw, strict=True)]))
    ratios["everything once, at the end"] = ratio(plain.latents[-1] - late)
    return ratios | theory(toy, reference, plain)


def theory(toy: Toy, reference: Run, plain: Run) -> dict[str, float]:
    """What the formulas miss of the final deviation of the uncorrected run, as a share of it."""
    total = [b - a for a, b in zip(reference.raw, plain.raw, strict=True)]
    same = [raw - toy.exact(i, plain.latents[i]) for i, raw in enumerate(plain.raw)]
    deviation = plain.latents[-1] - reference.latents[-1]
    found = {
        "total errors": propagated(toy.steps, total),
        "errors on one input, J = 0": propagated(toy.steps, same),
        "errors on one input, J = 0, window 1": windowed(toy.steps, same),
    }
    return {f"missed by {name}": float((one[-1] - deviation).norm() / deviation.norm()) for name, one in found.items()}


def measured(seeds: int) -> list[dict[str, Any]]:
    """A row for each solver, kind of errors and correction."""
    rows = list[dict[str, Any]]()
    for solver in SOLVERS:
        for errors in ERRORS:
            runs = [measure(solver, errors, seed) for seed in range(seeds)]
            for name in runs[0]:
                values = [one[name] for one in runs]
                error = statistics.stdev(values) / math.sqrt(seeds) if seeds > 1 else 0.0
                figures = {"mean": statistics.fmean(values), "standard_error": error, "first": values[0]}
                figures = {key: float(f"{value:.4g}") for key, value in figures.items()}
                rows.append({"solver": solver, "errors": errors, "what": name, **figures})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The corrections as Markdown."""
    by = {(row["what"], row["solver"], row["errors"]): row for row in rows}
    kinds = [(solver, errors) for errors in ERRORS for solver in SOLVERS]
    heads = ("correction", *(f"{solver}, {errors}" for solver, errors in kinds))
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in dict.fromkeys(row["what"] for row in rows):
        cells = [by[name, *kind] for kind in kinds]
        words = [f"{one['mean']:.3f} ± {one['standard_error']:.3f}" for one in cells]
        lines.append(f"| {name} | {' | '.join(words)} |")
    return "\n".join(lines)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the file; measures nothing")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    if not arguments.table:
        settings = {"T": T, "prompts": PROMPTS, "seeds": arguments.seeds, "size": SIZE, "explained": EXPLAINED}
        header = {**made_with(), "command": "python benchmarks/tcec_toy.py", **settings}
        content = {"header": header, "rows": measured(arguments.seeds)}
        write_atomic(arguments.out, (json.dumps(content, indent=1) + "\n").encode())
    print(table(json.loads(arguments.out.read_text())["rows"]))


if __name__ == "__main__":
    main()
