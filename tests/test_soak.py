"""Many requests of which half fail somewhere: the others never notice. benchmarks/soak.py is the same for longer."""

from typing import Any

import pytest

import soaked
from benchmark_scripts import load


@pytest.fixture(scope="module")
def soak() -> Any:
    return load("soak")


def test_requests_after_faults_in_every_component_are_bit_for_bit_as_before(soak: Any):
    with soaked.two_pipelines() as pipes:
        found = soak.soak(pipes, 80, seed=0)
    assert (found["healthy"], found["not_bit_equal"]) == (40, 0)
    assert set(found["faults"]) == set(soak.COMPONENTS)


def test_requests_on_one_denoiser_are_what_they_are_alone_in_any_order(soak: Any):
    found = soaked.interleavings(soak.interleaved, 20, seed=1)
    assert found == {"not_bit_equal_output": 0, "not_bit_equal_guided": 0}
