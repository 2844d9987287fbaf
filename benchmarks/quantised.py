"""Corrections of quantised models, and plans on them: PSNR to the full-precision run, on every bundled model.

`python benchmarks/quantised.py` measures what its folder lacks, one row, scheme and model after the other, and goes on
there when it is started again; `--models`, `--schemes` and `--rows` choose a part, so that several processes can share
the work, each its own models or schemes. `--merge` measures nothing and writes benchmarks/results/quantised.json from
what is there, of which benchmarks/readme_table.py makes the tables of docs/quantised-models.md.
"""

import argparse
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kept import arguments_of, kept, names
from quantised_page import merged, write
from quantised_rows import ROWS, figures
from quantised_setting import FULL, MODELS, SCHEMES, Counts, Setting

from ertacache.calibration.first_steps import first_steps
from ertacache.errors import InvalidArgument, meant
from ertacache.evaluation.row_figures import made_with
from ertacache.pipelines.loading import load_pipeline


def settings_of(given: argparse.Namespace) -> Iterator[tuple[Setting, list[str]]]:
    """Every setting with its rows; models are loaded where they come up."""
    counts = Counts(given.fitted, given.chosen, given.judged)
    call: dict[str, Any] = {} if given.steps is None else {"num_inference_steps": given.steps}
    schemes, rows = checked("schemes", given.schemes, SCHEMES), checked("rows", given.rows, ROWS)
    for model in checked("models", given.models, MODELS):
        full = load_pipeline(model)
        for scheme in (*schemes, FULL):
            own = [row for row in rows if ROWS[row].full == (scheme == FULL)]
            if own:
                yield Setting(model, scheme, full, counts, given.work, call), own


def checked(option: str, text: str, known: Any) -> list[str]:
    """The names in a comma-separated list; "all" is every known one.

    Raises:
        InvalidArgument: another name.
    """
    found = list(known) if text == "all" else names(text)
    for name in found:
        if name not in known:
            raise InvalidArgument(f"--{option} has {name!r}; there are {', '.join(known)}{meant(name, list(known))}")
    return found


def measure(given: argparse.Namespace) -> list[str]:
    """Measure what is missing; returns what failed, which is tried again the next time."""
    failed = list[str]()
    for setting, rows in settings_of(given):
        setting.check()
        files = {row: setting.folder / f"{row}.json" for row in rows}
        missing = [row for row in rows if not files[row].is_file()]
        if missing:
            print(expected(setting, missing), flush=True)
        for row in missing:
            try:
                found = kept(files[row], setting.settings, lambda s=setting, r=row: figures(s, r))
                print(f"  {row}: {said(found)}", flush=True)
            except Exception:  # one row's fault shall not cost the others a night
                traceback.print_exc()
                failed.append(f"{setting.model} {setting.scheme} {row}")
    return failed


def expected(setting: Setting, rows: list[str]) -> str:
    """What these rows will take, from the second step of a run."""
    runs = sum(ROWS[row].runs(setting.counts) for row in rows)
    seen = first_steps(setting.pipe, setting.one, setting.options["call"])
    seconds = runs * seen.steps * seen.seconds
    return (
        f"{setting.model} {setting.scheme}: {len(rows)} rows, at most {runs:.0f} runs of one prompt of {seen.steps} "
        f"steps, about {seconds:.0f} s"
    )


def said(found: dict[str, Any]) -> str:
    """A row for those who wait."""
    mean = sum(found["psnr"]) / len(found["psnr"]) if found["psnr"] else float("nan")
    return f"{mean:.2f} dB in {found['seconds']:.0f} s {found['what']}"


def parsed(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="all", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--schemes", default="all", help=f"of {', '.join(SCHEMES)}; all by default")
    parser.add_argument("--rows", default="all", help=f"of {', '.join(ROWS)}; all by default")
    parser.add_argument("--fitted", type=int, default=24, help="prompts that coefficients are fitted to")
    parser.add_argument("--chosen", type=int, default=8, help="prompts that choose among corrections and plans")
    parser.add_argument("--judged", type=int, default=32, help="prompts that judge")
    parser.add_argument("--steps", type=int, help="solver steps instead of the model's own, for a trial")
    parser.add_argument("--merge", action="store_true", help="write the result of what is there, and measure nothing")
    return arguments_of(parser, "quantised", given)


def main(given: list[str] | None = None) -> None:
    arguments = parsed(given)
    if arguments.merge:
        files = [path for path in sorted(Path(arguments.work).glob("*/*/*.json")) if path.stem in ROWS]
        write(merged(files, {**made_with(), "command": "python benchmarks/quantised.py"}), arguments.out)
    elif failed := measure(arguments):
        raise SystemExit(f"{len(failed)} failed, and are tried again the next time: {', '.join(failed)}")


if __name__ == "__main__":
    main()
