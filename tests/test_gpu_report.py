"""The table of benchmarks/gpu.py, word by word."""

import json
from pathlib import Path

from gpu_scripts import report

TABLE = """\
2026-11-26, seed 0, 8 minutes: device H100, torch 2.13.

Weights are random: times, memory and counted calls are real, and the pictures mean nothing. A method is compared by \
what it costs beside the calls that it makes, never by quality.

| model | variant | plan | cost | loop | faster | of ideal | computed step | predicted step | memory |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| M (9 of 19 layers) | eager | uncached | 1.000 | 6.000 s |  |  | 214.00 ms |  | 31 GiB |
| M (9 of 19 layers) | eager | T/2 | 0.500 | 3.030 s | 1.98× | 0.990 | 215.00 ms | 0.215 ms, 0.10 % | + 2 MiB of 2 MiB |
| M (9 of 19 layers) | fp8wo | corrected | 1.000 | 6.010 s | 1.00× | 0.998 | 214.10 ms, +0.05 % |  | + 2 MiB |
| M (9 of 19 layers) | other caches | MagCache, T/2 | 0.510 | 3.200 s | 1.88× | 0.956 |  |  | + 30 MiB |
| M (9 of 19 layers) | other caches | DBCache, T/2 | it is not there |  |  |  |  |  |  |

- M: a calibration on 2 prompts at T = 8 took 7.5 s (4 uncached runs of one prompt); the default plan on 24 prompts at \
T = 28 is the work of 48, about 288 s of denoising.
- M, compiled: not reached: it needs about 90 s, and 12 s are left
"""


def test_the_table_word_by_word(tmp_path: Path) -> None:
    header = {
        "date": "2026-11-26", "seed": 0, "minutes": 8.0, "tiny": False, "machine": {"device": "H100", "torch": "2.13"},
    }  # fmt: skip
    said: list[str] = []
    made = report.Report(tmp_path / "gpu.json", header, said.append)
    base = {"model": "M", "variant": "eager", "layers": "9 of 19", "T": 28}
    whole = {**base, "plan": "uncached", "K": 28, "cost": 1.0, "seconds": 9.0, "step_seconds": 0.214}
    made.row({**whole, "peak_bytes": 31 * 2**30})
    made.row({**whole, "peak_bytes": 31 * 2**30, "seconds": 6.0})  # in place of the one before
    cached = {
        **base, "plan": "T/2", "K": 14, "cost": 0.5, "seconds": 3.03, "step_seconds": 0.215, "ratio": 1.98,
        "share_of_ideal": 0.99, "predicted_seconds": 0.000215, "predicted_share": 0.001, "held_bytes": 2**21,
        "peak_bytes": 31 * 2**30, "more_bytes": 2**21, "bound_bytes": 2**21,
    }  # fmt: skip
    made.row(cached)
    made.row({
        **whole, "variant": "fp8wo", "plan": "corrected", "seconds": 6.01, "step_seconds": 0.2141, "ratio": 0.9983,
        "share_of_ideal": 0.9983, "correction_share": 0.00047, "held_bytes": 2**14, "peak_bytes": 31 * 2**30,
        "more_bytes": 2**21,
    })  # fmt: skip
    made.row({
        **base, "variant": "other caches", "plan": "MagCache, T/2", "K": 14, "cost": 0.51, "seconds": 3.2,
        "ratio": 1.875, "share_of_ideal": 0.9561, "peak_bytes": 31 * 2**30, "more_bytes": 30 * 2**20,
    })  # fmt: skip
    made.row({**base, "variant": "other caches", "plan": "DBCache, T/2", "K": 14, "reason": "it is not there"})
    derived = {"T": 28, "K": 14, "prompts": 24, "uncached_runs": 48.0, "seconds": 288.0}
    made.row({
        **base, "variant": "calibration", "plan": "calibration", "T": 8, "K": 4, "prompts": 2, "seconds": 7.5,
        "uncached_runs": 4.0, "derived": derived,
    })  # fmt: skip
    made.entry("M", "eager", "measured")
    made.entry("M", "compiled", "not reached", "it needs about 90 s, and 12 s are left")
    assert made.table() == (tmp_path / "gpu.md").read_text() == TABLE
    assert len(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == 6
    assert said[-1] == "-- M, compiled: not reached: it needs about 90 s, and 12 s are left"
