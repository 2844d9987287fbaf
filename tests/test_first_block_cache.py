"""FirstBlockCache of diffusers as a compared method."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig

from ertacache.baselines.first_block_cache import FirstBlockCache
from ertacache.errors import CacheConflict
from ertacache.evaluation.execute import execute
from method_contract import FIRST, PIPELINES, check_contract
from pipelines import CALL, flux


@pytest.mark.parametrize(("build", "call", "blocks", "branches"), PIPELINES)
def test_an_endless_threshold_runs_the_first_block_only(build, call, blocks, branches):
    executed = check_contract(build, FirstBlockCache(threshold=2.0), call)
    assert executed.block_calls == [branches * blocks] + [branches] * 9
    assert executed.denoiser_calls == [branches] * 10


def test_it_is_what_diffusers_makes_of_the_same_config():
    ours = execute(flux(), FirstBlockCache(threshold=0.3), FIRST, CALL)[0]
    pipe = flux()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.3))
    assert torch.equal(ours, execute(pipe, None, FIRST, CALL)[0])


def test_no_threshold_computes_everything():
    executed = check_contract(flux, FirstBlockCache(threshold=0.0), CALL)
    assert executed.block_calls == [6] * 10


def test_a_second_cache_is_refused():
    pipe = flux()
    with (
        FirstBlockCache().applied(pipe, CALL),
        pytest.raises(CacheConflict, match="already enabled on this FluxTransformer2DModel"),
        FirstBlockCache().applied(pipe, CALL),
    ):
        pass
