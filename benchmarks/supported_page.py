"""Writes docs/supported-pipelines.md from the checks of tests/test_supported.py."""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from ertacache.pipelines.models import FAMILIES

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "supported-pipelines.md"
NOISE = ROOT / "benchmarks" / "results" / "stochastic_solver.json"
VERSIONS = ("diffusers", "transformers", "torch")
HEAD = """# Supported pipelines

Any diffusers pipeline with one `transformer` or `unet`, or with Wan2.2's two, classic or of Modular Diffusers, is
served at the sites `output` and `guided`, without a line about it in this package. The tables are what the checks
of `tests/test_supported.py` find on the real pipeline classes around small random weights: they prove the plumbing
(calls, shapes, signs, batches), not the quality on trained weights.

For every row a profile was calibrated on two prompts and measured on a third, with schedule `{mask}` of {T} steps:
residual reuse at `output`, a predictor fitted to the last two outputs at `guided`. Then, counted below whatever
this package attaches: the plain pipeline repeats itself bit for bit; under the profile the denoiser runs in every
context exactly on the computed steps; a run that dies half way leaves nothing behind; without the profile the
pipeline gives again the bits of before.

This page is written by `python benchmarks/supported_page.py` ({versions}).
"""
COLUMNS = ("model", "pipeline", "denoiser", "scheduler", "calls per step", "`output`", "`guided`", "notes")
AFTER_PIPELINES = """
The two columns of sites give the calls that were computed and predicted, in each context. `hidden` is served for
{hidden}; elsewhere it is refused.

What the notes mean:

- *both branches in one call*: conditional and unconditional halves of one batch; at `output` one prediction is made
  for both.
- *no cache context*: the pipeline does not name its calls, which are then `call0`, `call1`, ... in their order.
- *conditions concatenated to the latent*: an image, a mask or further tokens follow the latent in the denoiser's
  input; the residual v − x is taken against the leading part that is as large as the output.
- *more channels out than in*: the output holds a variance too, which the pipeline cuts off before the solver.
- *the pipeline negates the output* before the solver gets it. The residual v − x of `output` has the wrong sign
  there: prefer `guided`.

The guidance weight that a fitted profile belongs to is read off the two branches of the first step, also where the
pipeline negates or rescales what it makes of them. Where it makes something else of them (a third call) the weight
is not known, and not checked.

Refused sites:

"""
SOLVERS_HEAD = """
## Schedulers

The same check at `guided`, on the small Stable Diffusion 1.5. "Another time grid" is what `timesteps=` of
`calibrate` needs.

| solver | scheduler | prediction | another time grid |
|---|---|---|---|
"""
TAIL = """
Solvers that draw noise take it from the call's `generator`: calibration passes one for each prompt, and a cached
run gets the noise of the plain one. Pipelines that do not hand it on to the solver (FLUX's) take it from torch's own,
which is yours to seed. Prediction is worth much less there, since the noise changes what the denoiser sees between
one output and the next: on the bundled {model} (guidance {guidance:g}, {T} steps of which {K} evenly
spaced ones are computed, residual reuse at `output`, {prompts} held-out prompts) the mean PSNR against the plain run
with the same noise is {plain:.1f} dB with Euler's solver and {noisy:.1f} dB with its `stochastic_sampling`
(`python benchmarks/stochastic_solver.py`). The held-out figures of a profile say what yours loses.

## Refused

Each with an error that says what and why:

- pipelines without a `transformer` or `unet`, or with both;
- denoisers that return several tensors (a video and its sound), and pipelines in which several solvers use one output;
- solvers that call the denoiser several times per step, or at a timestep twice, or whose `step` takes other
  arguments (above);
- calibration of a run that starts late (`strength` below 1); a profile that was calibrated at strength 1 serves
  such runs: they compute until there is a history;
- a run in which the shape of the output changes, as where Z-Image's `cfg_truncation` ends guidance half way;
- a denoiser on which another cache is enabled already.
"""


def row(name: str, results: dict[str, Any]) -> str:
    """One pipeline: its results by site."""
    either = next((result for result in results.values() if not result.refused), results["guided"])
    calls = " ".join(f"`{context}`" for context in either.computed) or "–"
    sites = ["refused" if not found.computed else _counts(found) for found in (results["output"], results["guided"])]
    cells = (name, f"`{either.pipeline}`", f"`{either.denoiser}`", f"`{either.scheduler}`", calls, *sites)
    return "| " + " | ".join((*cells, "; ".join(either.notes))) + " |"


def _counts(result: Any) -> str:
    pairs = {f"{result.computed[name]} + {result.predicted[name]}" for name in result.computed}
    return ", ".join(sorted(pairs))


def solver_row(name: str, result: Any, grid: str | None) -> str:
    """One scheduler: the result at `guided`, and what bars it from another grid."""
    prediction = f"refused: {result.refused}" if result.refused else _counts(result)
    return f"| {name} | `{result.scheduler}` | {prediction} | {'yes' if grid is None else f'no: {grid}'} |"


def page(pipelines: dict[str, dict[str, dict[str, Any]]], solvers: dict[str, tuple[Any, str | None]]) -> str:
    """The whole page.

    Args:
        pipelines: results by heading, name and site.
        solvers: result and refusal of another grid, by name.
    """
    from supported import MASK, T

    versions = ", ".join(f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in VERSIONS)
    text = HEAD.format(mask=MASK, T=T, versions=versions)
    for heading, rows in pipelines.items():
        text += f"\n## {heading}\n\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"
        text += "".join(f"{row(name, results)}\n" for name, results in rows.items())
    hidden = [f"`{family.denoiser}`" for family in FAMILIES if family.block_lists]
    text += AFTER_PIPELINES.format(hidden=", ".join(hidden[:-1]) + " and " + hidden[-1])
    for rows in pipelines.values():
        for name, results in rows.items():
            for reason in dict.fromkeys(found.refused for found in results.values() if found.refused):
                sites = [f"`{site}`" for site, found in results.items() if found.refused == reason]
                text += f"- {name}, {' and '.join(sites)}: {reason}.\n"
    text += SOLVERS_HEAD
    text += "".join(f"{solver_row(name, result, grid)}\n" for name, (result, grid) in solvers.items())
    return text + TAIL.format(**noise())


def noise() -> dict[str, Any]:
    """The figures of the paragraph on solvers that draw noise."""
    plain, noisy = (json.loads(NOISE.read_text())[name] for name in ("deterministic", "stochastic"))
    return {
        "model": plain["model"],
        "guidance": plain["call"]["guidance_scale"],
        "T": plain["T"],
        "K": plain["K"],
        "prompts": len(plain["prompts"]),
        "plain": plain["psnr"]["mean"],
        "noisy": noisy["psnr"]["mean"],
    }


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    from every_pipeline import fresh_page

    PAGE.write_text(fresh_page(page))
