"""The guidance weight that a pipeline used, whatever else it did to the two branches."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ertacache.pipelines.guidance import TwoBranchGuidance

WEIGHT = 4.0


def branches(seed: int = 0, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    uncond = torch.randn(*(shape or (2, 4, 6, 8)), generator=generator)
    return uncond + 0.2 * torch.randn(uncond.shape, generator=generator), uncond


def combined(cond: Tensor, uncond: Tensor) -> Tensor:
    return uncond + WEIGHT * (cond - uncond)


def inferred(cond: Tensor, uncond: Tensor, guided: Tensor) -> float | None:
    guidance = TwoBranchGuidance(("cond", "uncond"))
    guidance.observe("cond", cond)
    guidance.observe("uncond", uncond)
    return guidance.weight(guided)


def row_norm(cond: Tensor, guided: Tensor) -> Tensor:
    return guided * cond.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)


def sample_norm(cond: Tensor, guided: Tensor) -> Tensor:
    axes = tuple(range(1, guided.ndim))
    return guided * (0.3 + 0.7 * cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True))


CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda cond, guided: guided,
    "another sign": lambda cond, guided: -guided,
    "rescaled per sample": sample_norm,
    "rescaled per row": row_norm,
    "rescaled per row, another sign": lambda cond, guided: -row_norm(cond, guided),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("shape", [(2, 4, 6, 8), (2, 24, 8)])
def test_the_weight_is_found(change: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
    cond, uncond = branches(0, *shape)
    guided = change(cond, combined(cond, uncond))
    assert inferred(cond, uncond, guided) == pytest.approx(WEIGHT, abs=1e-3)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_weight_is_found_in_bfloat16(change: Callable[[Tensor, Tensor], Tensor]) -> None:
    cond, uncond = (branch.bfloat16() for branch in branches(1, 2, 64, 32, 32))
    guided = change(cond, combined(cond, uncond))
    assert inferred(cond, uncond, guided) == pytest.approx(WEIGHT, rel=5e-3)


def test_branches_in_one_batch_with_a_learned_variance() -> None:
    cond, uncond = branches()
    output = torch.cat([torch.cat([part, part * 2], 1) for part in (uncond, cond)])
    guidance = TwoBranchGuidance(("call0",))
    guidance.observe("call0", output)
    assert guidance.weight(combined(cond, uncond)) == pytest.approx(WEIGHT, abs=1e-3)


def test_axes_of_length_one_and_conditions_behind_the_latent_do_not_matter() -> None:
    cond, uncond = branches(0, 2, 24, 8)
    longer = [torch.cat([part, part + 1], 1) for part in (cond, uncond)]
    assert inferred(*longer, combined(cond, uncond)) == pytest.approx(WEIGHT, abs=1e-3)
    assert inferred(cond[:, None], uncond[:, None], combined(cond, uncond)) == pytest.approx(WEIGHT, abs=1e-3)


@pytest.mark.parametrize("change", ["a third call", "another batch", "other"])
def test_what_the_branches_do_not_make_up_has_no_weight(change: str) -> None:
    cond, uncond = branches()
    guided = combined(cond, uncond)
    if change == "a third call":
        guided = guided + branches(5)[0]
    elif change == "another batch":
        guided = guided[:1].repeat(3, 1, 1, 1)
    else:
        guided = guided.transpose(-1, -2).contiguous()
    assert inferred(cond, uncond, guided) is None


def test_equal_branches_have_no_weight() -> None:
    cond, _ = branches()
    assert inferred(cond, cond, cond) is None


def test_another_kind_of_guidance_is_told_from_branches_that_hardly_differ() -> None:
    """NaN is no weight that a profile was calibrated at; None may be any."""
    cond, uncond = branches()

    def read(first: Tensor, guided: Tensor) -> float | None:
        guidance = TwoBranchGuidance(("cond", "uncond"))
        guidance.observe("cond", first)
        guidance.observe("uncond", uncond)
        weighed = guidance.weigh(guided)
        assert weighed is not None
        return weighed.read()

    other = branches(5)[0]
    found = read(cond, combined(cond, uncond) + other)
    assert found is not None and math.isnan(found)
    assert read(uncond, uncond + other) is None
    assert read(cond, combined(cond, uncond) * torch.nan) is None
    between = 0.07 * combined(cond, uncond).norm() / other.norm()  # more than rounding, less than another kind
    assert read(cond, combined(cond, uncond) + between * other) is None
