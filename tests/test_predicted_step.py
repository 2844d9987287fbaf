"""benchmarks/predicted_step.py: every form is the same prediction, and the page shows the committed figures."""

import json
from typing import Any

import pytest

from benchmark_scripts import load

memory: Any = load("memory")
script: Any = load("predicted_step")


@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("channelwise", [False, True])
@pytest.mark.parametrize("size", [memory.FLUX, memory.WAN], ids=lambda size: size.model)
def test_every_form_is_the_same_prediction(size: Any, channelwise: bool, inputs: bool) -> None:
    case = memory.Case(size, "fitted", "guided", script.LEVELS)
    terms = script.predictor(case, channelwise, inputs).terms(script.STEP, "guided")
    assert len(terms.a) == script.LEVELS and (terms.d is not None) == inputs
    assert (terms.b is not None) == (inputs and channelwise)
    history, x = script.filled(size)
    found = {name: form().double() for name, form in script.forms(terms, history, x, backend="eager").items()}
    a = [(history.output(source, level), coefficient) for source, level, coefficient in terms.a]
    exact = sum(value.double() * coefficient for value, coefficient in a)
    if terms.d is not None:
        exact = exact + (x.double() - history.input("guided").double()) * terms.d
    exact = exact if terms.b is None else exact + terms.b
    for one in found.values():  # half a unit in the last place of bfloat16, and the rounding of the sum
        assert ((one - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()


def test_the_page_shows_the_committed_figures() -> None:
    rows = json.loads(script.RESULTS.read_text())["rows"]
    assert script.updated(script.PAGE.read_text(), rows) == script.PAGE.read_text()
    assert script.table(rows) in script.PAGE.read_text()
