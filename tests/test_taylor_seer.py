"""TaylorSeer of diffusers as a compared method, on attention and feed-forward."""

import pytest
import torch
from diffusers import TaylorSeerCacheConfig
from torch import nn

from ertacache.baselines.taylor_seer import TaylorSeer
from ertacache.errors import CacheConflict, InvalidArgument
from ertacache.evaluation.execute import execute
from method_contract import FIRST, check_contract
from pipelines import CALL, CFG_CALL, VIDEO_CALL, cogvideox, flux, wan

#: pipeline, call, attention modules that run in a computed step, denoiser calls per step
FLUX = (flux, CALL, 6, 1)
ALL = [FLUX, (lambda: flux(False), CFG_CALL, 12, 2), (wan, VIDEO_CALL, 12, 2), (cogvideox, VIDEO_CALL, 3, 1)]
#: warm-up 0, 1, 2, then every third step from 4 on
SCHEDULE = [1, 1, 1, 0, 1, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(("build", "call", "attentions", "calls"), ALL, ids=["flux", "flux-cfg", "wan", "cogvideox"])
def test_attention_runs_on_the_schedule_only(build, call, attentions, calls):
    executed = check_contract(build, TaylorSeer(interval=3, order=1, warmup=3), call)
    assert executed.attention_calls == [attentions * computed for computed in SCHEDULE]
    assert executed.denoiser_calls == [calls] * 10


@pytest.mark.parametrize(
    ("build", "call", "inside", "left"),
    [
        (flux, CALL, "transformer_blocks", {"norm1", "norm1_context", "norm"}),
        (wan, VIDEO_CALL, "blocks", set()),
        (cogvideox, VIDEO_CALL, "transformer_blocks", {"norm1", "norm2"}),
    ],
    ids=["flux", "wan", "cogvideox"],
)
def test_only_the_modulation_of_the_blocks_runs_in_a_predicted_step(build, call, inside, left, monkeypatch):
    pipe = build()
    linears = {name: part for name, part in pipe.transformer.named_modules() if isinstance(part, nn.Linear)}
    names = {id(part.weight): name for name, part in linears.items() if inside in name}
    ran: set[str] = set()
    steps: list[set[str]] = []
    linear, step = nn.functional.linear, pipe.scheduler.step

    def noted_linear(x, weight, bias=None):
        ran.update(names[key] for key in [id(weight)] if key in names)
        return linear(x, weight, bias)

    def noted_step(model_output, timestep, sample, **kwargs):
        steps.append(set(ran))
        ran.clear()
        return step(model_output, timestep, sample, **kwargs)

    monkeypatch.setattr(nn.functional, "linear", noted_linear)
    pipe.scheduler.step = noted_step
    execute(pipe, TaylorSeer(interval=3, order=1, warmup=3), FIRST, call)
    for computed, found in zip(SCHEDULE, steps, strict=True):
        if computed:
            assert found == set(names.values())
        else:
            assert {name.split(".")[2] for name in found} == left


def test_a_warm_up_of_minus_one_starts_the_interval_at_step_0():
    executed = check_contract(wan, TaylorSeer(interval=4, warmup=-1), VIDEO_CALL)
    assert executed.attention_calls == [12, 0, 0, 0, 12, 0, 0, 0, 12, 0]


def test_an_interval_of_one_changes_nothing():
    pipe = flux()
    plain = execute(pipe, None, FIRST, CALL)[0]
    images, executed = execute(pipe, TaylorSeer(interval=1), FIRST, CALL)
    assert executed.attention_calls == [6] * 10
    assert torch.equal(images, plain)


def test_order_0_repeats_the_last_output_of_every_module():
    pipe = wan()
    seen: list[torch.Tensor] = []
    pipe.transformer.blocks[0].attn1.register_forward_hook(lambda *call: seen.append(call[2].clone()))
    with TaylorSeer(interval=5, order=0, warmup=-1).applied(pipe, VIDEO_CALL):
        execute(pipe, None, FIRST, VIDEO_CALL)
    cond = seen[::2]
    assert len(cond) == 10
    assert all(torch.equal(cond[n], cond[5 * (n // 5)]) for n in range(10))
    assert not torch.equal(cond[0], cond[5])


def test_order_1_extrapolates_by_the_divided_difference():
    pipe = wan()
    seen: list[torch.Tensor] = []
    pipe.transformer.blocks[1].ffn.register_forward_hook(lambda *call: seen.append(call[2].clone()))
    with TaylorSeer(interval=3, order=1, warmup=-1).applied(pipe, VIDEO_CALL):
        execute(pipe, None, FIRST, VIDEO_CALL)
    uncond = seen[1::2]
    for n in range(4, 10):
        newest = 3 * (n // 3)
        slope = (uncond[newest] - uncond[newest - 3]) / 3
        torch.testing.assert_close(uncond[n], uncond[newest] + (n - newest) * slope)


def test_it_is_what_diffusers_makes_of_the_same_config():
    ours = execute(cogvideox(), TaylorSeer(4, order=2, warmup=2), FIRST, VIDEO_CALL)[0]
    pipe = cogvideox()
    pipe.transformer.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=4,
            max_order=2,
            disable_cache_before_step=2,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=[r"transformer_blocks\.\d+\.(attn1|ff)"],
        )
    )
    assert torch.equal(ours, execute(pipe, None, FIRST, VIDEO_CALL)[0])


@pytest.mark.parametrize(("build", "call", "denoiser"), [(flux, CALL, "Flux"), (wan, VIDEO_CALL, "Wan")])
def test_published_settings_run(build, call, denoiser):
    settings = next(found for name, found in TaylorSeer.published().items() if name.startswith(denoiser))
    for method in settings.values():
        executed = execute(build(), method, FIRST, call)[1]
        assert executed.attention_calls.count(0) >= 5


def test_published_settings():
    found = TaylorSeer.published()["FluxTransformer2DModel"]
    assert found == {"slow": TaylorSeer(4, 2, 3), "fast": TaylorSeer(6, 1, 3)}
    assert TaylorSeer.published()["WanTransformer3DModel"] == {"fast": TaylorSeer(5, 1, -1)}


def test_refusals():
    pipe = flux()
    assert TaylorSeer(warmup=10).refusal(pipe, CALL) == "all 10 steps are warm-up; set warmup below 10"
    assert TaylorSeer(warmup=9).refusal(pipe, CALL) is None
    pipe.transformer = nn.Linear(2, 2)
    assert TaylorSeer().refusal(pipe, CALL) == "Linear has no enable_cache"
    pipe.transformer = type("Unknown", (type(flux().transformer),), {})(**_small(flux().transformer.config))
    assert TaylorSeer().refusal(pipe, CALL) == "the attention and feed-forward modules of Unknown are not known"


def _small(config):
    return {name: value for name, value in config.items() if not name.startswith("_")}


def test_variants_are_the_orders():
    assert [method.order for method in TaylorSeer(4).variants()] == [0, 1, 2]
    assert all(method.interval == 4 for method in TaylorSeer(4).variants())


def test_knob():
    assert TaylorSeer().at(6.4) == TaylorSeer(interval=6)
    with pytest.raises(InvalidArgument, match="taylorseer: interval is 16; choose 1 to 15"):
        TaylorSeer().at(16)


def test_a_second_cache_is_refused():
    pipe = flux()
    with (
        TaylorSeer().applied(pipe, CALL),
        pytest.raises(CacheConflict, match="already enabled on this FluxTransformer2DModel"),
        TaylorSeer().applied(pipe, CALL),
    ):
        pass
