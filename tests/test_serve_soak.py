"""The soak of the server at a small size; `benchmarks/serve_soak.py` runs 500 requests of 8 clients."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

import served_flux
from benchmark_scripts import load
from ertacache.serving.order import Limits
from served import running


def test_no_picture_is_another_and_no_job_is_lost():
    script, service = load("serve_soak"), served_flux.service(limits=Limits(queue=3))
    expected = script.alone(service.pipes[0], service.ladder)
    with running(service) as url, ThreadPoolExecutor(1) as pool:
        found = script.soak(url, expected, 30, 4, 0, pool)
    seen = found["seen"]
    assert script.wrong(found) == []
    assert seen["pictures"] > 0 and seen["bad input"] > 0 and seen["gone"] > 0 and seen["streams"] > 0
    assert sum(seen[kind] for kind in ("pictures", "streams", "gone", "bad input")) == 30
    assert len(found["memory_mib"]) == 10
    assert found["live"]["end"]["jobs"] <= found["live"]["warm"]["jobs"]  # each worker's first and last


def test_what_must_not_be_is_said():
    script = load("serve_soak")
    ended = {'requests_total{status="completed"}': 5, 'requests_total{status="cancelled"}': 1}
    sound = {"seen": {"pictures": 3, "streams": 1, "gone": 2}, "faults": [], "ended": ended}
    assert script.wrong(sound) == []
    assert script.wrong({**sound, "faults": ["x"]}) == ["x"]
    assert script.wrong({**sound, "seen": {**sound["seen"], "not the one made alone": 2}}) == [
        "2 pictures are not the one made alone"
    ]
    for seen in ({"pictures": 2}, {"pictures": 4}, {"gone": 1}, {"pictures": 5, "gone": 0}):
        assert len(script.wrong({**sound, "seen": {**sound["seen"], **seen}})) == 1
    assert script.dealt(500, 8) == [62, 63, 62, 63, 62, 63, 62, 63]


def test_the_page_has_the_figures_of_the_result_file():
    script = load("serve_soak")
    if not script.RESULT.is_file():
        pytest.skip("python benchmarks/serve_soak.py has not been run")
    result, page = json.loads(script.RESULT.read_text()), script.PAGE.read_text(encoding="utf-8")
    assert script.wrong(result) == []
    assert (result["header"]["requests"], result["header"]["clients"]) == (500, 8)
    assert script.with_table(page, result) == page
    memory, first, last = result["memory_mib"], *(result["live"][when] for when in ("warm", "end"))
    assert memory[-1] <= 1.01 * memory[0], "memory grows"
    assert last["jobs"] <= 2  # the worker's first and last
    for name in ("python_objects", "python_blocks", "malloc_mib"):
        assert last[name] <= 1.002 * first[name], f"{name} grows"
