"""Full-size models with random weights on a GPU: speed, memory and overhead of this package and of other caches.

Run by hand, on any machine with CUDA: `python benchmarks/gpu.py --minutes 8`. Nothing is downloaded. Rewrites
benchmarks/results/gpu.json and the table beside it after every measurement, what is worth most first, and stops when
the minutes are used up. See docs/gpu.md.
"""

import argparse
import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def main(argv: Sequence[str] | None = None, machine: Any = None) -> int:
    """Exit code: 0, also where entries were skipped; argparse's 2 for bad input."""
    if importlib.util.find_spec("ertacache") is None:  # a bare checkout
        sys.path.insert(0, str(ROOT / "src"))
    from gpu_models import MODELS

    known = {model.name: model for model in MODELS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything (8)")
    parser.add_argument("--models", default="all", help=f"separated by commas: {', '.join(known)}")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; cpu with --tiny only")
    parser.add_argument("--tiny", action="store_true", help="tiny models: proves that it runs, measures nothing")
    parser.add_argument("--seed", type=int, default=0, help="of weights and noise (0)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json", help="a .json file")
    given = parser.parse_args(argv)
    try:
        names, device = checked(given, list(known))
    except ValueError as error:  # InvalidArgument is one
        parser.error(str(error))
    from gpu_run import Machine, benchmark

    models = [known[name] for name in names]
    benchmark(
        machine or Machine.of(device), models, given.minutes, given.out, tiny=given.tiny, seed=given.seed,
        say=lambda line: print(line, flush=True),
    )  # fmt: skip
    return 0


def checked(given: argparse.Namespace, known: list[str]) -> tuple[list[str], Any]:
    """The names of the models and the device.

    Raises:
        ValueError: an option with a value that cannot work; the text says what can.
    """
    from ertacache.errors import meant
    from ertacache.files import check_output
    from ertacache.pipelines.loading import check_placement

    if not 0 < given.minutes < math.inf:
        raise ValueError(f"--minutes is {given.minutes:g}; give a number above 0, such as 8")
    if not 0 <= given.seed < 2**63:
        raise ValueError(f"--seed is {given.seed}; give a whole number from 0 to 2^63 - 1")
    names = known if given.models == "all" else [name.strip() for name in given.models.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"--models has {name!r}; there are {', '.join(known)}{meant(name, known)}")
    device, _ = check_placement(given.device, None)
    if device.type not in ("cuda", "cpu"):
        raise ValueError(f"--device is {given.device!r}; steps are timed on CUDA, or on the CPU with --tiny")
    if device.type == "cpu" and not given.tiny:
        raise ValueError("--device is 'cpu', where models of full size take hours; add --tiny")
    if given.out.suffix != ".json":
        raise ValueError(f"--out is {given.out}; name a .json file, and the table is written beside it")
    check_output(given.out, "JSON file")
    return list(dict.fromkeys(names)), device


if __name__ == "__main__":
    sys.exit(main())
