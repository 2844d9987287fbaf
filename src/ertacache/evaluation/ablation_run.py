"""Every row of the ablation on held-out prompts, as JSON lines and one report."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.progress import run_progress
from ertacache.calibration.prompts import Prompts
from ertacache.core.offload import Offload
from ertacache.errors import InvalidArgument
from ertacache.evaluation.ablation import REUSE, Ablation
from ertacache.evaluation.evaluate import Evaluation, Trial
from ertacache.evaluation.row_figures import header, write_rows
from ertacache.evaluation.separate import check_separate
from ertacache.extras import require
from ertacache.pipelines.loading import with_steps
from ertacache.runtime.folder_lock import locked


@dataclass
class AblationRun:
    """Groups of rows in one folder, written after every row.

    Args:
        out: folder for `results.jsonl`, samples and `report.html`.
        prompts: held-out prompts, shared by all groups.
        seed: of their noise.
        model: name for the report's title.

    Raises:
        MissingExtra: the report could not be made in the end.
    """

    out: Path
    prompts: Sequence[str]
    seed: int = 10_000
    model: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def __post_init__(self) -> None:
        require("the report of an ablation", "jinja2")

    def add(
        self,
        pipe: Any,
        calibration_prompts: Sequence[str],
        budgets: Sequence[int],
        call: dict[str, Any],
        *,
        group: str,
        full: bool = True,
        samples: int = 6,
        show_progress: bool = True,
        offload_history: Offload = None,
    ) -> list[dict[str, Any]]:
        """Calibrate and measure one pipeline at several budgets; returns the new rows.

        Args:
            samples: how many prompts keep their pictures.
            offload_history: where the histories of profiles wait; see `runtime.apply`.
            full: every reuse site and basis; otherwise residual reuse at the output and the fitted basis.

        Raises:
            InvalidArgument: a prompt is in both lists, a budget does not fit, or another process has the folder.
        """
        check_separate(calibration_prompts, self.prompts)
        steps = with_steps(pipe, call)["num_inference_steps"]
        for budget in budgets:
            if not 2 <= budget <= steps:
                raise InvalidArgument(f"budget {budget} is outside 2 to {steps}; choose a number of computed steps")
        held = Prompts(tuple(self.prompts), self.seed)
        expected = len(budgets) * (90 if full else 45)
        with locked(self.out), run_progress(show_progress, f"ablation {group}", expected=expected) as progress:
            calibrator = Calibrator(pipe, calibration_prompts, choose=1 / 3, seed=0, call=call, progress=progress)
            evaluation = Evaluation(pipe, held, call, group, self.out, samples=samples, offload_history=offload_history)
            head = header(self.model or group, held, call, calibrator.T)
            new = [evaluation.row(Trial("no cache", "no cache"))]
            for budget in budgets:
                for trial in Ablation(calibrator, budget, REUSE if full else REUSE[:1], full).trials():
                    new.append(evaluation.row(trial))
                    progress(trial.label)
                    write_rows(self.out / "results.jsonl", (head, *self.rows, *new))
        self.rows += new
        return new

    def report(self) -> Path:
        """Write `report.html` beside the results; returns its path."""
        from ertacache.evaluation.report.ablation import write_report

        return write_report(self.out / "results.jsonl", self.out / "report.html")
