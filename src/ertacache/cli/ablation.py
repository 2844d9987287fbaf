"""`ertacache ablation`: what each part of the method is worth."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ertacache.cli import options as given
from ertacache.cli.command import shows_progress

#: Of a row, what programs are told; the file has all.
_KEPT = (
    "label", "K", "budget", "psnr", "ssim", "denoise_seconds", "image_seconds", "extra_bytes", "calls", "schedule",
)  # fmt: skip


def ablation(
    model: given.Model,
    out: Annotated[Path, typer.Option(help="Folder for results, samples and report.html.")] = Path("out/ablation"),
    budgets: Annotated[str, typer.Option(help="Numbers of computed steps, separated by commas.")] = "15,10,6",
    prompts: given.PromptFile = None,
    calibration_prompts: given.CalibrationFile = None,
    full: Annotated[bool, typer.Option(help="Every reuse site and basis, or residual reuse and fitted only.")] = True,
    offload_history: given.History = None,
    seed: given.Seed = 10_000,
    *,
    call: dict[str, Any],
    placement: given.Placement,
) -> dict[str, Any]:
    """Measure no cache, fewer steps, uniform and the ERTACache ablation on held-out prompts at equal computed steps."""
    numbers = _numbers(budgets)
    from ertacache.cli.model import check, held_out, load
    from ertacache.evaluation.ablation_run import AblationRun
    from ertacache.pipelines.loading import call_arguments
    from ertacache.runtime.folder_lock import check_results

    check(model, placement)
    held, texts = held_out(model, prompts, calibration_prompts)
    check_results(out)
    run = AblationRun(out, held, seed, model)
    pipe, arguments = load(model, placement), call_arguments(model, call)
    options: dict[str, Any] = {"full": full, "offload_history": offload_history, "show_progress": shows_progress()}
    rows = run.add(pipe, texts, numbers, arguments, group=group_name(model, arguments), **options)
    report = run.report()
    facts = [{key: row[key] for key in _KEPT} for row in rows]
    return {"report": str(report), "rows": facts, "text": f"{table(rows)}\n{out / 'results.jsonl'}\n{report}"}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = [f"{'':58} {'K':>3} {'PSNR':>14} {'SSIM':>7} {'denoise':>9}"]
    for row in rows:
        psnr = f"{row['psnr']['mean']:6.2f} ± {row['psnr']['std']:4.2f}"
        seconds = f"{row['denoise_seconds'] * 1000:6.0f} ms"
        lines.append(f"{row['label'][:58]:58} {row['K']:3} {psnr:>14} {row['ssim']['mean']:7.4f} {seconds:>9}")
    return "\n".join(lines)


def group_name(model: str, call: dict[str, Any]) -> str:
    """Model and guidance, as the report groups rows."""
    # Where both are given, the guidance scale is an input of the denoiser; a second one is a second denoiser's.
    first = "true_cfg_scale" if call.get("true_cfg_scale") else "guidance_scale"
    weights = [f"{name} {call[name]:g}" for name in (first, "guidance_scale_2") if call.get(name)]
    return ", ".join([Path(model).name, *weights])


def _numbers(text: str) -> list[int]:
    from ertacache.errors import InvalidArgument

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidArgument(
            f"--budgets is {text!r}; give whole numbers separated by commas, such as 15,10,6"
        ) from error
    if min(numbers) < 2 or len(set(numbers)) < len(numbers):
        raise InvalidArgument(f"--budgets is {text!r}; compute 2 steps or more, and give each number once")
    return numbers
