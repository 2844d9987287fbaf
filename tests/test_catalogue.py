"""The list of compared methods: what commands, files and the documentation rely on."""

import json
import sys
from pathlib import Path

import pytest

import ertacache
from cached import profile
from ertacache.baselines.baseline import Baseline
from ertacache.baselines.catalogue import METHODS, method, methods
from ertacache.errors import CacheConflict, InvalidArgument
from ertacache.evaluation.comparison.entrant import Entrant, Tuned, from_json, published_entrants, to_json
from pipelines import CALL, CFG_CALL, VIDEO_CALL, cogvideox, flux, wan

ROOT = Path(__file__).parent.parent
PIPELINES = [(flux, CALL), (lambda: flux(False), CFG_CALL), (wan, VIDEO_CALL), (cogvideox, VIDEO_CALL)]
IDS = ["flux", "flux-cfg", "wan", "cogvideox"]


def test_methods_are_found_by_their_names():
    assert len({known.key for known in METHODS}) == len(METHODS)
    assert all(method(known.key) is known for known in METHODS)
    assert methods("all") == METHODS
    assert [known.key for known in methods("fitted, pab")] == ["fitted", "pab"]


@pytest.mark.parametrize("keys", ["", "pab,pab"])
def test_a_list_of_names_has_to_name_different_methods(keys):
    with pytest.raises(InvalidArgument, match="name different methods separated by commas, or all"):
        methods(keys)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InvalidArgument, match=r"no method 'teacash'; there are fewer-steps, .*teacache"):
        methods("uniform,teacash")


@pytest.mark.parametrize("known", METHODS, ids=lambda known: known.key)
def test_every_method_says_what_it_is(known: Baseline):
    assert known.title and known.paper and known.work
    knob = known.knob
    for value in (knob.low, knob.high):
        assert getattr(known.at(value), knob.field) == pytest.approx(value)
    outside = max(knob.low, knob.high) + 1
    with pytest.raises(InvalidArgument, match=f"{known.key}: {knob.field} is {outside:g}; choose {knob.low:g} to"):
        known.at(outside)


@pytest.mark.parametrize(("build", "call"), PIPELINES, ids=IDS)
def test_a_method_that_cannot_run_gives_a_reason(build, call):
    pipe = build()
    for known in METHODS:
        reason = known.refusal(pipe, call)
        assert reason is None or (len(reason) > 15 and not reason.endswith("."))


@pytest.mark.parametrize("known", METHODS, ids=lambda known: known.key)
def test_an_entrant_comes_back_from_its_file(known: Baseline, tmp_path):
    tuned = Tuned(Entrant("x", known, 0.5), known, 0.49)
    data = json.loads(json.dumps(to_json(tuned, tmp_path)))
    assert from_json(data, Entrant("x", known, 0.5), tmp_path) == tuned


def test_published_settings_become_entrants():
    found = {entrant.id: entrant for entrant in published_entrants(METHODS, cogvideox())}
    assert {"teacache:slow", "teacache:5B-fast", "pab:videosys", "fastercache:authors"} <= set(found)
    assert found["pab:videosys"].target is None and found["pab:videosys"].method.key == "pab"
    assert published_entrants([method("fewer-steps")], flux()) == []


@pytest.mark.parametrize("key", ["first-block-cache", "pab", "dbcache"])
def test_other_libraries_caches_refuse_a_pipeline_with_a_profile(key: str):
    pipe = flux()
    with (
        ertacache.apply(pipe, profile(pipe, "guided")),
        pytest.raises(CacheConflict, match="a profile is applied to this"),
    ):
        with method(key).applied(pipe, CALL):
            pass


def test_the_page_of_methods_is_the_list(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import methods_page

    assert methods_page.page() == (ROOT / "docs" / "methods.md").read_text()
    sys.modules.pop("methods_page")
