"""Which outputs of a step are two branches of guidance, and their difference."""

import pytest
import torch
from torch import Tensor

from ertacache.pipelines.branches import direction_of, two_branches


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


GUIDED = drawn(2, 4, 3, 5)
COND, UNCOND, MORE = (drawn(2, 4, 3, 5, seed=seed) for seed in (1, 2, 3))
SHAPES: dict[str, tuple[dict[str, Tensor], bool]] = {
    "two calls": ({"cond": COND, "uncond": UNCOND}, True),
    "one batch": ({"call0": torch.cat([UNCOND, COND])}, True),
    "a learned variance": ({"call0": torch.cat([torch.cat([UNCOND, MORE], 1), torch.cat([COND, MORE], 1)])}, True),
    "an axis of length one": ({"a": COND[:, :, None], "b": UNCOND[:, :, None]}, True),
    "conditions behind": ({"a": torch.cat([COND, MORE], -1), "b": torch.cat([UNCOND, MORE], -1)}, True),
    "one branch": ({"cond": COND}, False),
    "three calls": ({"cond": COND, "uncond": UNCOND, "skip": MORE}, False),
    "three in one batch": ({"call0": torch.cat([UNCOND, COND, MORE])}, False),
    "another batch": ({"cond": COND, "uncond": torch.cat([UNCOND, MORE])}, False),
    "smaller": ({"cond": COND, "uncond": UNCOND[..., :4]}, False),
    "fewer axes": ({"cond": COND, "uncond": UNCOND[..., 0]}, False),
    "nothing": ({}, False),
}


@pytest.mark.parametrize("case", SHAPES)
def test_the_direction_of_two_branches_and_of_nothing_else(case: str) -> None:
    outputs, known = SHAPES[case]
    found = direction_of(outputs, GUIDED)
    assert (two_branches(outputs, GUIDED) is None) == (found is None) == (not known)
    if found is not None:
        assert torch.equal(found, COND - UNCOND)
        given = {output.untyped_storage().data_ptr() for output in outputs.values()}
        assert found.untyped_storage().data_ptr() not in given


def test_it_has_the_dtype_of_the_outputs() -> None:
    found = direction_of({"cond": COND.bfloat16(), "uncond": UNCOND.bfloat16()}, GUIDED)
    assert found is not None and found.dtype == torch.bfloat16
    assert torch.equal(found, COND.bfloat16() - UNCOND.bfloat16())
