"""DBCache of cache-dit as a compared method, alone and with each of its calibrators."""

import importlib.util
import sys

import pytest
import torch

from ertacache.baselines.db_cache import DBCache, DBCacheDMD, DBCacheFoCa, DBCacheTaylorSeer
from ertacache.baselines.first_block_cache import FirstBlockCache
from ertacache.errors import CacheConflict, InvalidArgument, MissingExtra
from ertacache.evaluation.execute import execute
from method_contract import FIRST, PIPELINES, check_contract
from pipelines import CALL, VIDEO_CALL, flux, wan

# Not imported here: the first import, from within the package, decides how much it logs.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("cache_dit") is None, reason="the extra cache-dit is missing")

BUILDS = [pytest.param(*entry.values[:2], id=entry.id) for entry in PIPELINES]
#: two steps of warm-up, then three reused in a row at most
SCHEDULE = [1, 1, 0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("method", [DBCache, DBCacheTaylorSeer, DBCacheDMD, DBCacheFoCa])
@pytest.mark.parametrize(("build", "call", "blocks", "calls"), PIPELINES)
def test_an_endless_threshold_runs_the_first_block_only(build, call, blocks, calls, method):
    executed = check_contract(build, method(1.0, warmup=2, max_continuous=3), call)
    assert executed.block_calls == [calls * (blocks if computed else 1) for computed in SCHEDULE]
    assert executed.denoiser_calls == [calls] * 10


def test_it_is_quiet(capfd):
    execute(flux(), DBCache(), FIRST, CALL)
    assert "Cache-DiT" not in "".join(capfd.readouterr())


def test_fn_and_bn_blocks_run_in_every_step():
    executed = execute(flux(), DBCache(1.0, fn=2, bn=1, warmup=4, max_continuous=-1), FIRST, CALL)[1]
    assert executed.block_calls == [6] * 4 + [3] * 6


def test_without_guidance_every_call_is_a_step():
    call = {**VIDEO_CALL, "guidance_scale": 1.0}
    executed = execute(wan(), DBCache(1.0, warmup=3, max_continuous=-1), FIRST, call)[1]
    assert executed.denoiser_calls == [1] * 10
    assert executed.block_calls == [3] * 3 + [1] * 7


@pytest.mark.parametrize(("build", "call", "blocks", "calls"), PIPELINES)
def test_no_threshold_changes_nothing(build, call, blocks, calls):
    pipe = build()
    plain = execute(pipe, None, FIRST, call)[0]
    images, executed = execute(pipe, DBCache(0.0), FIRST, call)
    assert executed.block_calls == [calls * blocks] * 10
    assert torch.equal(images, plain)


@pytest.mark.parametrize(("warmup", "reached"), [(3, 0), (4, 1), (5, 2)])
def test_the_calibrator_reaches_order_j_after_a_warm_up_of_3_plus_j_steps(warmup, reached):
    pipe = flux()
    plain = execute(pipe, DBCache(1.0, warmup=warmup, max_continuous=-1), FIRST, CALL)[0]
    orders = [
        execute(pipe, DBCacheTaylorSeer(1.0, warmup=warmup, max_continuous=-1, order=order), FIRST, CALL)[0]
        for order in range(reached + 2)
    ]
    assert torch.equal(orders[0], plain)
    assert torch.equal(orders[reached + 1], orders[reached])
    for order in range(reached):
        assert (orders[order + 1] - orders[order]).abs().max() > 1e-3


CALIBRATORS = {
    DBCacheTaylorSeer: ("TaylorSeerCalibratorConfig", {"taylorseer_order": 1}),
    DBCacheDMD: ("DMDCalibratorConfig", {"dmd_history": 6, "dmd_ridge": 1e-8}),
    DBCacheFoCa: ("FoCaCalibratorConfig", {}),
}


@pytest.mark.parametrize("method", CALIBRATORS)
@pytest.mark.parametrize(("build", "call"), BUILDS)
def test_it_is_what_cache_dit_makes_of_the_same_config(build, call, method):
    import cache_dit

    ours = execute(build(), method(0.3, warmup=4, max_continuous=2), FIRST, call)[0]
    pipe, (name, options) = build(), CALIBRATORS[method]
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=0.3, max_warmup_steps=4,
        max_continuous_cached_steps=2, enable_separate_cfg="true_cfg_scale" in call or build is wan,
    )  # fmt: skip
    cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=getattr(cache_dit, name)(**options))
    try:
        assert torch.equal(ours, execute(pipe, None, FIRST, call)[0])
    finally:
        cache_dit.disable_cache(pipe)


def test_the_calibrators_differ():
    found = [
        execute(flux(), method(1.0, warmup=4, max_continuous=-1), FIRST, CALL)[0] for method in (DBCache, *CALIBRATORS)
    ]
    for n, images in enumerate(found):
        assert all((images - other).abs().max() > 1e-3 for other in found[:n])


@pytest.mark.parametrize(("build", "call"), BUILDS)
def test_nothing_is_left_on_the_denoiser_or_the_class(build, call):
    pipe = build()
    execute(pipe, None, FIRST, call)
    before = _attributes(pipe)
    with pytest.raises(ConnectionError), DBCache(1.0, warmup=2).applied(pipe, call):
        execute(pipe, None, FIRST, call)
        assert _attributes(pipe) != before
        raise ConnectionError
    assert _attributes(pipe) == before


def _attributes(pipe):
    """Name -> identity of everything that hangs on the class of the pipeline and on the denoiser's modules."""
    places = {"class": type(pipe), **dict(pipe.transformer.named_modules())}
    found = {(place, name): id(value) for place, owner in places.items() for name, value in vars(owner).items()}
    return found | {("pipe", name): 0 for name in vars(pipe)}


def test_a_run_that_died_leaves_nothing_to_the_next():
    pipe = flux()
    method = DBCache(1.0, warmup=2)
    wanted = execute(flux(), method, FIRST, CALL)[0]

    def die(*_):
        raise ConnectionError

    with method.applied(pipe, CALL):
        handle = pipe.vae.decoder.register_forward_pre_hook(die)
        with pytest.raises(ConnectionError):
            execute(pipe, None, FIRST, CALL)
        handle.remove()
        assert torch.equal(execute(pipe, None, FIRST, CALL)[0], wanted)


def test_other_pipelines_of_the_class_stay_as_they_are():
    pipe, other = flux(), flux(seed=5)
    plain = execute(other, None, FIRST, CALL)
    method = DBCache(1.0, warmup=2)
    wanted = execute(flux(), method, FIRST, CALL)[0]
    with method.applied(pipe, CALL):
        first = execute(pipe, None, FIRST, CALL)[0]
        meanwhile = execute(other, None, FIRST, CALL)
        assert torch.equal(meanwhile[0], plain[0])
        assert meanwhile[1].signature == plain[1].signature
        assert torch.equal(first, wanted)
        assert torch.equal(execute(pipe, None, FIRST, CALL)[0], wanted)
    assert torch.equal(execute(other, None, FIRST, CALL)[0], plain[0])


def test_conflicts():
    pipe, other = flux(), flux()
    with (
        DBCache().applied(pipe, CALL),
        pytest.raises(CacheConflict, match="cache-dit is already enabled on a FluxPipeline"),
        DBCache().applied(other, CALL),
    ):
        pass
    with (
        FirstBlockCache().applied(pipe, CALL),
        pytest.raises(CacheConflict, match="already enabled on this FluxTransformer2DModel"),
        DBCache().applied(pipe, CALL),
    ):
        pass


def test_published_settings_run():
    for kind in (DBCache, *CALIBRATORS):
        settings = kind.published()["FluxTransformer2DModel"]
        assert settings == {"slow": kind(0.12, 1, 0, 4, 3), "fast": kind(0.24, 1, 0, 4, 6)}
        for method in settings.values():
            assert execute(flux(), method, FIRST, CALL)[1].block_calls[:4] == [6] * 4


def test_refusals():
    pipe = flux()
    assert DBCache(warmup=10).refusal(pipe, CALL) == "all 10 steps are warm-up; set warmup below 10"
    assert DBCache(fn=8).refusal(pipe, CALL) == (
        "fn 8 and bn 0 leave none of 6 blocks to reuse; choose fn >= 1, and less"
    )
    assert DBCache(fn=4, bn=1).refusal(pipe, CALL) is None
    assert "fn 4 and bn 2 leave none" in DBCache(fn=4, bn=2).refusal(pipe, CALL)
    assert "fn 0 and bn 0" in DBCache(fn=0).refusal(pipe, CALL)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert DBCache().refusal(pipe, CALL) == (
        "the denoiser is compiled, and cache-dit would not reach its blocks; pass it as it was before"
    )
    pipe.transformer = torch.nn.Linear(2, 2)
    assert DBCache().refusal(pipe, CALL) == "cache-dit or this package does not know the blocks of Linear"


def test_without_cache_dit_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    pipe = flux()
    assert "install it with: pip install 'ertacache[cache-dit]'" in DBCache().refusal(pipe, CALL)
    with pytest.raises(MissingExtra, match=r"pip install 'ertacache\[cache-dit\]'"):
        DBCache().applied(pipe, CALL)


def test_variants_are_the_orders():
    assert [method.order for method in DBCacheTaylorSeer().variants()] == [1, 2]
    assert DBCacheDMD().variants() == (DBCacheDMD(),)


def test_knob():
    assert DBCacheTaylorSeer(order=2).at(0.5) == DBCacheTaylorSeer(0.5, order=2)
    with pytest.raises(InvalidArgument, match=r"dbcache-taylorseer: threshold is 1\.5; choose 0 to 1"):
        DBCacheTaylorSeer().at(1.5)
