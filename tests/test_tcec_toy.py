"""benchmarks/tcec_toy.py: the committed figures are what it measures, and what docs/quantised-models.md says."""

import json
from typing import Any

import pytest

from benchmark_scripts import ROOT, load

toy: Any = load("tcec_toy")
CONTENT: dict[str, Any] = json.loads(toy.RESULTS.read_text())
KINDS = [(solver, errors) for solver in toy.SOLVERS for errors in toy.ERRORS]


def means(what: str) -> list[float]:
    """In the order of `KINDS`: DDIM and flow, each independent and explained."""
    by = {(row["what"], row["solver"], row["errors"]): row["mean"] for row in CONTENT["rows"]}
    return [by[what, *kind] for kind in KINDS]


@pytest.mark.parametrize(("solver", "errors"), [("DDIM", "independent"), ("flow", "explained")])
def test_the_first_seed_is_measured_again(solver: str, errors: str):
    kept = {row["what"]: row["first"] for row in CONTENT["rows"] if (row["solver"], row["errors"]) == (solver, errors)}
    found = toy.measure(solver, errors, 0)
    assert found.pop("missed by total errors") < 1e-10 and kept.pop("missed by total errors") < 1e-10
    assert found == pytest.approx(kept, rel=2e-3)


def test_independent_noise_is_not_to_be_corrected():
    for form in ("ptqd-gain, scalar", "ptqd-gain, channel", "ptqd, scalar", "ptqd, channel"):
        assert all(0.99 < one <= 1 for one in means(form)[::2])
    assert all(one > 1.02 for one in means("gain, scalar")[::2])
    assert means("gain, channel")[0] > 1.02 and means("gain, channel")[2] < 1  # the exception


def test_a_gain_that_explains_the_error_is_found_by_every_form():
    for kind in (1, 3):
        found = [means(f"{form}, scalar")[kind] for form in ("gain", "ptqd-gain", "ptqd", "affine")]
        assert max(found) < 0.4 and max(found) - min(found) < 0.01


def test_counting_twice_is_worse_at_every_weight():
    alone = means("gain, scalar")
    for weight, before in zip(toy.WEIGHTS, (None, *toy.WEIGHTS), strict=False):
        found = means(f"gain, scalar, and {weight} of the step before")
        less = alone if before is None else means(f"gain, scalar, and {before} of the step before")
        assert all(a > b for a, b in zip(found, less, strict=True))
    assert sum(one > 1 for one in means("gain, scalar, and 1.0 of the step before")) == 3


def test_a_step_late_is_nearly_as_good_and_the_jacobian_is_not_nothing():
    late = means("the step before alone")
    assert all(b < a < b + 0.08 for a, b in zip(late, means("gain, scalar"), strict=True) if a < 1)
    missed = means("missed by errors on one input, J = 0")
    assert all(one > 1 for one in missed[:2]) and all(0.2 < one < 0.5 for one in missed[2:])
    assert all(one > 0.8 for one in means("missed by errors on one input, J = 0, window 1"))
    assert all(one > 1.5 for one in means("everything once, at the end")[:2])


def test_the_page_shows_the_committed_table():
    page = (ROOT / "docs" / "quantised-models.md").read_text()
    shown = page.partition("<!-- tcec toy -->\n")[2].partition("\n<!-- /tcec toy -->")[0]
    assert shown == toy.table(CONTENT["rows"])


def test_a_small_run_writes_its_header(tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    monkeypatch.setattr(toy, "measure", lambda solver, errors, seed: {"bias, scalar": 1.0 + seed})
    toy.main(["--seeds", "2", "--out", str(tmp_path / "toy.json")])
    content = json.loads((tmp_path / "toy.json").read_text())
    assert content["header"]["seeds"] == 2 and {"versions", "machine", "command"} <= content["header"].keys()
    assert content["rows"][0] == {
        "solver": "DDIM", "errors": "independent", "what": "bias, scalar",
        "mean": 1.5, "standard_error": 0.5, "first": 1.0,
    }  # fmt: skip
    assert "| bias, scalar | 1.500 ± 0.500 |" in capsys.readouterr().out
