"""What a predicted step costs at the latent sizes of FLUX and Wan2.1: formula (P), and the whole step around it.

Run by hand: `python benchmarks/predicted_step.py`; two minutes. The formula is taken in place, as the run-time does,
with a new tensor for each term, and compiled by `torch.compile`; forms take turns, so that a drifting machine moves
all of them. Rewrites benchmarks/results/predicted_step.json and the table in docs/compile-quantise-lora-offload.md.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from memory import FLUX, SCHEDULE, WAN, Case, RandomOutput, RandomPipeline, Size, profile
from torch import Tensor

from ertacache.calibration.prompts import Prompts
from ertacache.core.history import History
from ertacache.core.predictor import Predictor, Terms
from ertacache.evaluation.row_figures import header
from ertacache.runtime.hooks import attached
from ertacache.runtime.player import Player
from ertacache.runtime.run_stats import RunStats

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "predicted_step.json"
PAGE = ROOT / "docs" / "compile-quantise-lora-offload.md"
COLUMNS = ("new_tensors_ms", "in_place_ms", "compiled_ms", "predicted_step_ms", "step_without_profile_ms")
LEVELS, STEP = 3, SCHEDULE.predicted_steps[-1]
Form = Callable[[], Tensor]


def predictor(case: Case, channelwise: bool, inputs: bool) -> Predictor:
    """Fitted coefficients of `LEVELS` outputs; `inputs` keeps the d term, and adds a constant where channel-wise."""
    made = case.predictor()
    if not inputs:
        made = replace(made, d=torch.zeros_like(made.d))
    if not channelwise:
        return made
    shape = (1, case.size.latent[-1]) if case.size is FLUX else (case.size.latent[0], 1, 1, 1)
    kappa = torch.zeros(made.T, 1, *shape)
    for i in SCHEDULE.predicted_steps:
        kappa[i] = 0.1 + torch.arange(kappa[i].numel()).reshape(kappa[i].shape) / 1000
    return made.rectified(kappa, kappa / 10 if inputs else torch.zeros_like(kappa))


def filled(size: Size) -> tuple[History, Tensor]:
    """A history of `LEVELS` outputs and their input, and the latent of the step to predict."""
    generator, history = torch.Generator().manual_seed(0), History(LEVELS)

    def drawn(dtype: torch.dtype) -> Tensor:
        return torch.randn(1, *size.latent, generator=generator).to(dtype)

    for _ in range(LEVELS):
        history.push("guided", drawn(torch.bfloat16), drawn(size.dtype))
    return history, drawn(size.dtype)


def expression(outputs: list[Tensor], a: list[Any], change: tuple[Tensor, Tensor] | None, d: Any, b: Any) -> Tensor:
    """Formula (P) as it is written, with a new tensor for each term."""
    total = torch.zeros_like(outputs[0], dtype=torch.float32)
    for value, coefficient in zip(outputs, a, strict=True):
        total = total + value.float() * coefficient
    if change is not None:
        total = total + (change[0].float() - change[1].float()) * d
    if b is not None:
        total = total + b
    return total.to(outputs[0].dtype)


def forms(terms: Terms, history: History, x: Tensor, backend: str = "inductor") -> dict[str, Form]:
    """The same prediction in each form."""
    outputs = [history.output(source, level) for source, level, _ in terms.a]
    change = None if terms.d is None else (x, history.input(terms.target))
    a = [coefficient for *_, coefficient in terms.a]
    tables = [torch.as_tensor(one) for one in a]  # a graph would be made anew for each number
    d, b = (None if one is None else torch.as_tensor(one) for one in (terms.d, terms.b))
    compiled = torch.compile(expression, backend=backend, fullgraph=True, dynamic=False)
    return {
        "in_place": lambda: terms(history, x),
        "new_tensors": lambda: expression(outputs, a, change, terms.d, terms.b),
        "compiled": lambda: compiled(outputs, tables, change, d, b),
    }


def quartile(seconds: Sequence[float]) -> float:
    """The lower quartile in milliseconds: other work on the machine only ever adds."""
    return round(1e3 * statistics.quantiles(seconds, n=4)[0], 3)


def timed(forms: dict[str, Form], rounds: int) -> dict[str, float]:
    """Milliseconds of each form, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 3):
        for name, form in forms.items():
            start = perf_counter()
            form()
            if turn >= 3:
                seconds[name].append(perf_counter() - start)
    return {f"{name}_ms": quartile(found) for name, found in seconds.items()}


def steps(case: Case, table: Predictor, rounds: int) -> dict[str, float]:
    """Milliseconds of a whole predicted step of the loop, and of the same step without any profile.

    The denoiser is random numbers, so that the other figure is the pipeline's and the solver's own work.
    """
    pipe = RandomPipeline(case.size, RandomOutput(case.size))
    made = replace(profile(case, pipe), predictor=table)
    found: dict[str, list[float]] = {"predicted_step": [], "step_without_profile": []}
    for _ in range(rounds):
        for name, controller in (("predicted_step", Player(made, RunStats())), ("step_without_profile", None)):
            ends: list[float] = []
            with attached(pipe, controller) if controller else nullcontext():
                pipe(lambda ends=ends: ends.append(perf_counter()))
            found[name] += [ends[i] - ends[i - 1] for i in SCHEDULE.predicted_steps]
    return {f"{name}_ms": quartile(values) for name, values in found.items()}


def measure(size: Size, channelwise: bool, inputs: bool, rounds: int) -> dict[str, Any]:
    """One row: every form, and the whole step."""
    torch.compiler.reset()
    case = Case(size, "fitted", "guided", LEVELS)
    table = predictor(case, channelwise, inputs)
    history, x = filled(size)
    made = forms(table.terms(STEP, "guided"), history, x)
    facts = {"model": size.model, "coefficients": "channel" if channelwise else "scalar", "d_and_b": inputs}
    return {**facts, **timed(made, rounds), **steps(case, table, max(1, rounds // 10))}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, in milliseconds."""
    lines = [
        "| model, coefficients | a new tensor for each term | in place | compiled | whole predicted step "
        "| the same step of the loop without a profile |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"{row['model']}, {row['coefficients']}" + (" with d and b" if row["d_and_b"] else "")
        lines.append("| " + " | ".join((name, *(f"{row[column]:.2f}" for column in COLUMNS))) + " |")
    return "\n".join(lines)


def updated(page: str, rows: Sequence[dict[str, Any]]) -> str:
    """The page with its table renewed."""
    mark = re.compile(r"(<!-- predicted step -->\n).*?(<!-- /predicted step -->)", re.DOTALL)
    return mark.sub(lambda found: f"{found[1]}{table(rows)}\n{found[2]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for size in (FLUX, WAN):
        for channelwise in (False, True):
            for inputs in (False, True):
                rows.append(measure(size, channelwise, inputs, arguments.rounds))
                print(rows[-1], flush=True)
    facts = header(f"{FLUX.model}, {WAN.model}: sizes only", Prompts(("",), 0), {}, SCHEDULE.T)
    head = {"command": " ".join(["python", *sys.argv]), "threads": 1, "levels": LEVELS, **facts}
    RESULTS.write_text(json.dumps({"header": head, "rows": rows}, indent=2) + "\n")
    PAGE.write_text(updated(PAGE.read_text(), rows))


if __name__ == "__main__":
    main()
