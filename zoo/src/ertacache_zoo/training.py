"""One training loop for every zoo model: deterministic by seed, resumable, logged."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ertacache.files import save_atomic

#: Loss of one batch, given a generator that depends on the seed and the iteration alone.
Loss = Callable[[torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast to train; written beside the weights."""

    iterations: int
    batch_size: int
    learning_rate: float
    warmup: int = 100
    ema: float = 0.0
    weight_decay: float = 0.0
    seed: int = 0
    save_every: int = 250
    #: Muon for the matrices of the repeated blocks, to which it gives steps as large as AdamW's (arXiv 2502.16982).
    muon: bool = False


def learning_rate(recipe: Recipe, iteration: int) -> float:
    """Linear warm-up, then a cosine to a hundredth."""
    if iteration < recipe.warmup:
        return recipe.learning_rate * (iteration + 1) / recipe.warmup
    progress = (iteration - recipe.warmup) / max(1, recipe.iterations - recipe.warmup)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(name: str, module: nn.Module, loss: Loss, recipe: Recipe, folder: Path) -> None:
    """Train `module` in place; continue from `folder`/NAME.pt where it exists.

    Every 50 iterations one JSON line (iteration, loss, seconds) is added to `folder`/NAME.jsonl. At the end
    the module holds the exponential moving average of its weights where the recipe asks for one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_path, log_path = folder / f"{name}.pt", folder / f"{name}.jsonl"
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizers = _optimizers(module, recipe)
    average = [p.detach().clone() for p in parameters]
    start = 0
    if state_path.exists():
        start = _restore(state_path, module, optimizers, average)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(f"train {name}", total=recipe.iterations, completed=start)
        running, clock = 0.0, time.monotonic()
        for iteration in range(start, recipe.iterations):
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = learning_rate(recipe, iteration)
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + iteration)
            value = loss(generator)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            running += value.item()
            decay = min(recipe.ema, (1 + iteration) / (10 + iteration))
            with torch.no_grad():
                for mean, parameter in zip(average, parameters, strict=True):
                    mean.lerp_(parameter, 1 - decay)
            progress.update(task, advance=1)
            if (iteration + 1) % 50 == 0:
                _log(log_path, iteration + 1, running / 50, time.monotonic() - clock)
                running, clock = 0.0, time.monotonic()
            if (iteration + 1) % recipe.save_every == 0 or iteration + 1 == recipe.iterations:
                state = {
                    "iteration": iteration + 1,
                    "module": module.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "average": average,
                }
                save_atomic(state_path, lambda file, state=state: torch.save(state, file))
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)


def _optimizers(module: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for what is to be trained; with `muon` in the recipe, Muon for the matrices of repeated blocks."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    inner = [p for name, p in trained.items() if recipe.muon and "blocks." in name and name.endswith(".weight")]
    matrices = [p for p in inner if p.ndim == 2]
    known = {id(p) for p in matrices}
    others = [p for p in trained.values() if id(p) not in known]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=decay)
    if not matrices:
        return [adam]
    return [adam, torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")]


def _restore(path: Path, module: nn.Module, optimizers: list[torch.optim.Optimizer], average: list[Tensor]) -> int:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    for mean, saved in zip(average, state["average"], strict=True):
        mean.copy_(saved)
    return int(state["iteration"])


def _log(path: Path, iteration: int, loss: float, seconds: float) -> None:
    line = json.dumps({"iteration": iteration, "loss": round(loss, 5), "seconds": round(seconds, 1)})
    with path.open("a") as file:
        file.write(line + "\n")
