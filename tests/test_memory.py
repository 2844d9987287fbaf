"""What a profile holds at the sizes of published models: by the run's own word, and by counting every tensor."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmark_scripts import load

#: Scalar tensors that a solver or a pipeline may make besides.
SLACK = 4096


memory: Any = load("memory")
WAN, FLUX, BOTH = memory.WAN, memory.FLUX, "fitted, both branches"
#: One output in bytes.
V = {WAN: 16 * 21 * 60 * 104 * 2, FLUX: 4096 * 64 * 2}
#: (case, bytes of outputs, bytes of the latent at the newest computed step)
HELD = [
    (memory.Case(WAN, "reuse", "output", 1), 2 * V[WAN], 0),
    (memory.Case(WAN, "residual reuse", "output", 1), 2 * V[WAN], V[WAN]),
    (memory.Case(WAN, "residual reuse", "guided", 1), V[WAN], 2 * V[WAN]),
    *((memory.Case(WAN, "fitted", "output", p), 2 * p * V[WAN], V[WAN]) for p in (2, 3)),
    *((memory.Case(WAN, "fitted", "guided", p), p * V[WAN], 2 * V[WAN]) for p in (1, 2, 3)),
    *((memory.Case(WAN, BOTH, "guided", p, True), (2 * p + 1) * V[WAN], 2 * V[WAN]) for p in (1, 2, 3)),
    (memory.Case(FLUX, "reuse", "output", 1), V[FLUX], 0),
    *((memory.Case(FLUX, "fitted", site, p), p * V[FLUX], V[FLUX]) for site in ("output", "guided") for p in (1, 2, 3)),
    (memory.Case(FLUX, "reuse", "hidden", 1), 4096 * 3072 * 2, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "outputs", "latent"),
    HELD,
    ids=lambda v: f"{v.size.model} {v.method} {v.site} {v.p}" if hasattr(v, "p") else "",
)
def test_no_more_is_held_than_the_predictor_needs(case: Any, outputs: int, latent: int) -> None:
    row = memory.measure(case)
    assert row["extra_bytes"] == outputs + latent <= row["bound"]
    assert 0 <= row["counted"] - row["extra_bytes"] < SLACK
    assert row["host_bytes"] == 0


@pytest.mark.parametrize("site", ["output", "guided"])
def test_offloaded_nothing_is_held_on_the_device(site: Any) -> None:
    case = memory.Case(WAN, "fitted", site, 2)
    row = memory.measure(case, "cpu")
    assert row["extra_bytes"] == 0
    inputs = 2 * V[WAN]  # two of a call's, in bfloat16, or one of the solver's, in float32
    assert row["host_bytes"] == {"output": 4, "guided": 2}[site] * V[WAN] + inputs


def test_in_one_dtype_the_bound_is_p_plus_1_latents_of_each_call() -> None:
    size = replace(WAN, dtype=torch.bfloat16)
    for case in memory.cases():
        if case.size is WAN and case.site != "hidden":
            assert replace(case, size=size).bound == 2 * (case.p + 1) * V[WAN]


def test_pictures_do_not_depend_on_where_histories_wait() -> None:
    case = memory.Case(FLUX, "fitted", "guided", 3)
    pipe, found = memory.pipeline(FLUX, False), []
    for place in (None, "cpu"):
        player = memory.Player(memory.profile(case, pipe), memory.RunStats(), place)
        with memory.attached(pipe, player):
            found.append(pipe())
    assert torch.equal(*found)


def test_the_page_has_the_committed_figures() -> None:
    rows = json.loads(memory.RESULTS.read_text())["rows"]
    assert [(row["model"], row["method"], row["site"], row["p"]) for row in rows] == [
        (case.size.model, case.method, case.site, case.p) for case in memory.cases()
    ]
    for row in rows:
        assert row["extra_bytes"] <= row["bound"] and 0 <= row["counted"] - row["extra_bytes"] < SLACK
    page = memory.PAGE.read_text()
    assert memory.table(rows) in page and memory.updated(page, rows) == page
