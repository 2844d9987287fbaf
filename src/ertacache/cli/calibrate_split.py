"""`ertacache calibrate-split`: from two models and some prompts to the step at which the small one takes over."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ertacache.calibration.defaults import CHOOSE, HOLDOUT
from ertacache.cli import options as given
from ertacache.cli.command import shows_progress

if TYPE_CHECKING:
    from ertacache.split.profile import SplitProfile


def calibrate_split(
    large: given.Model,
    small: Annotated[str, typer.Argument(help="The small model: it shares latents and text encoders with the large.")],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("split.json"),
    prompt: given.SeveralPrompts = None,
    prompts: given.PromptFile = None,
    cloud_budget: Annotated[
        float | None, typer.Option(callback=given.finite, help="Share of the large model's operations, such as 0.4.")
    ] = None,
    target_psnr: Annotated[
        float | None, typer.Option(callback=given.finite, help="dB to the large model's pictures to keep.")
    ] = None,
    orders: Annotated[
        Literal["switch", "any"], typer.Option(help="The large model first, or in any order: for one process.")
    ] = "switch",
    choose: Annotated[
        float, typer.Option(callback=given.share, help="Share of the prompts that switches are compared on.")
    ] = CHOOSE,
    holdout: Annotated[
        float, typer.Option(callback=given.share, help="Share of the prompts that only judge the chosen switch.")
    ] = HOLDOUT,
    seed: given.Seed = 0,
    batch_size: given.BatchSize = None,
    checkpoint: given.Checkpoint = None,
    *,
    call: dict[str, Any],
    placement: given.Placement,
) -> dict[str, Any]:
    """Measure at which step a small model shall take over from a large one."""
    from ertacache.calibration.prompts import split_prompts
    from ertacache.cli.model import check, load, prompts_of
    from ertacache.files import check_output, rescued
    from ertacache.pipelines import bundled
    from ertacache.pipelines.loading import call_arguments

    check(large, placement)
    check(small, placement)
    texts = prompts_of(large, prompts, bundled.calibration_prompts, "--prompts", prompt or [])
    split_prompts(texts, choose, holdout, seed)
    check_output(out, "profile")
    from ertacache.split.calibrate import calibrate_split as run
    from ertacache.split.candidates import Budget

    budget = Budget.of(cloud_budget, target_psnr).asked()
    options: dict[str, Any] = {"choose": choose, "holdout": holdout, "seed": seed, "batch_size": batch_size}
    options |= {"orders": orders, "checkpoint": checkpoint, "show_progress": shows_progress(), **budget}
    found = run(load(large, placement), load(small, placement), texts, call=call_arguments(large, call), **options)
    rescued(out, found.save)
    return _said(found, out)


def _said(found: "SplitProfile", out: Path) -> dict[str, Any]:
    """The facts, and what is said of them once they are written."""
    facts: dict[str, Any] = {"profile": str(out), "switch": found.switch, "models": list(found.models)}
    facts |= {"cloud_share": found.cloud_share, "operations": found.operations}
    facts |= {"chosen_on": found.chosen_on, "judged": found.judged}
    # With progress on, the calibration has said what came of it.
    lines = [] if shows_progress() else [found.summary()]
    return {**facts, "text": "\n".join([*lines, f"written to {out} ({out.stat().st_size} bytes)"])}
