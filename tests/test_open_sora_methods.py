"""The compared methods on Open-Sora: what runs in which step, and what each makes of it, written out by hand.

Two pairs of blocks, spatial and temporal in turn, each with a self- and a cross-attention; both branches come in one
batch, the unconditional one first.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import FirstBlockCacheConfig
from torch import Tensor, nn
from torch.nn import functional

import small_open_sora
from ertacache.baselines.baseline import Baseline
from ertacache.baselines.delta_dit import DeltaDiT
from ertacache.baselines.faster_cache import FasterCache
from ertacache.baselines.first_block_cache import FirstBlockCache
from ertacache.baselines.implementation import branches, by_diffusers
from ertacache.baselines.mag_cache import MagCache
from ertacache.baselines.pab import PAB
from ertacache.baselines.t_gate import TGate
from ertacache.baselines.taylor_seer import TaylorSeer
from ertacache.baselines.teacache import COEFFICIENTS, TeaCache
from ertacache.baselines.teacache_signal import SignalController
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.evaluation.execute import execute
from ertacache.pipelines.models import attention_modules, blocks_of
from method_contract import FIRST, check_contract
from small_open_sora import CALL, open_sora

#: Timesteps of the 8 steps, rounded: 1000, 531, 327, 212, 139, 88, 51, 23.
WINDOW = (30.0, 600.0)
ONE, IDENTITY = (0.0, 0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 1.0, 0.0)
ALONE = {**CALL, "guidance_scale": 1.0}
Forward = Callable[..., Tensor]


class Steps:
    """Counts the steps of a pipeline with one denoiser call in each, from 0."""

    def __init__(self, pipe: Any) -> None:
        self.now = -1
        pipe.transformer.register_forward_pre_hook(self._next)

    def _next(self, *_: Any) -> None:
        self.now += 1


def gentle() -> Any:
    """With an output so small that rounding does not grow from step to step."""
    pipe = open_sora()
    with torch.no_grad():
        pipe.transformer.final_layer.linear.weight.div_(8)
    return pipe


def latents(pipe: Any, method: Baseline | None = None, call: dict[str, Any] = CALL) -> Tensor:
    return execute(pipe, method, FIRST, call, decode=False)[0]


def by_hand(write: Callable[[Any, Steps], None]) -> Tensor:
    """The latents of a pipeline whose parts `write` has replaced."""
    pipe = open_sora()
    write(pipe, Steps(pipe))
    return latents(pipe)


def close(ours: Tensor, expected: Tensor) -> None:
    """Equal to rounding, and not what the plain pipeline makes."""
    assert (ours - expected).abs().max() < 1e-5
    assert (ours - latents(open_sora())).abs().max() > 1e-3


def test_attentions_are_known_with_their_kinds():
    model = small_open_sora.transformer()
    names = {module: name for name, module in model.named_modules()}
    assert [(names[module], kind) for module, kind in attention_modules(model)] == [
        (f"{where}_blocks.{n}.{part}", kind if part == "cross_attn" or where == "spatial" else "temporal")
        for n in range(2)
        for where in ("spatial", "temporal")
        for part, kind in (("attn", "self"), ("cross_attn", "cross"))
    ]


@pytest.mark.parametrize(
    ("method", "blocks", "attentions", "batch"),
    [
        (DeltaDiT(skipped=0.25, interval=2), [4, 2, 4, 2, 4, 2, 4, 2], [8, 4] * 4, None),
        # The front pair is skipped in the steps 1 and 3.
        (DeltaDiT(0.25, interval=2, gate=0.0, until=0.5), [4, 2, 4, 2, 4, 4, 4, 4], [8, 4, 8, 4, *[8] * 4], None),
        # Self-attention rests in step 3; from the gate on there is one branch, and no cross-attention.
        (TGate(5 / 8, sp_interval=2), [4] * 8, [8, 8, 8, 4, 8, 4, 4, 4], [2, 2, 2, 2, 2, 1, 1, 1]),
        (TGate(4 / 8, 2, fi_interval=3, warm_up=0), [4] * 8, [8, 4, 8, 8, 0, 0, 4, 0], [2, 2, 2, 2, 1, 1, 1, 1]),
        # Of 2 spatial, 2 temporal and 4 cross; the steps 0 and 7 are outside of the window.
        (PAB(2, 3, 4, window=WINDOW), [4] * 8, [8, 0, 2, 2, 6, 0, 4, 8], [2] * 8),
        (TeaCache(2.5, ONE), [4, 0, 0, 4, 0, 0, 4, 4], [8, 0, 0, 8, 0, 0, 8, 8], None),
        (FirstBlockCache(2.0), [4, *[1] * 7], [8, *[2] * 7], [2] * 8),
        (MagCache(1.0, max_skip_steps=1, retention_ratio=0.0, ratios=(1.0,) * 8), [4, 0] * 4, [8, 0] * 4, None),
        (TaylorSeer(interval=2, order=1, warmup=-1), [4] * 8, [8, 0] * 4, [2] * 8),
    ],
    ids=[
        "Δ-DiT", "Δ-DiT until", "T-GATE", "T-GATE self", "PAB", "TeaCache", "FirstBlockCache", "MagCache", "TaylorSeer",
    ],
)  # fmt: skip
def test_each_runs_what_it_says_and_leaves_nothing_behind(
    method: Baseline, blocks: list[int], attentions: list[int], batch: list[int] | None
):
    executed = check_contract(gentle, method, CALL)
    assert executed.denoiser_calls == [1] * 8
    assert (executed.block_calls, executed.attention_calls) == (blocks, attentions)
    assert batch is None or executed.elements == batch


@pytest.mark.parametrize("gate", [1.0, 0.0])
def test_delta_dit_is_what_a_loop_over_the_blocks_does(gate: float):
    def write(pipe: Any, steps: Steps) -> None:
        states: list[Tensor] = []
        entry: list[Tensor] = []
        for index, block in enumerate(blocks_of(pipe.transformer)):

            def run(hidden: Tensor, *rest: Any, index: int = index, forward: Forward = block.forward) -> Tensor:
                span = range(2, 4) if steps.now < gate * 8 else range(2)
                if steps.now % 2 == 0:
                    states[index:] = [hidden, forward(hidden, *rest)]
                    return states[-1]
                if index not in span:
                    return forward(hidden, *rest)
                entry[:] = [hidden] if index == span.start else entry
                return entry[0] + states[span.stop] - states[span.start] if index == span.stop - 1 else hidden

            block.forward = run

    close(latents(open_sora(), DeltaDiT(0.25, interval=2, gate=gate)), by_hand(write))


def test_t_gate_is_what_both_branches_give_with_the_mean_of_their_cross_attention():
    """m = 5; self-attention is computed in 0 to 2 and 4, and after the gate in 6."""

    def write(pipe: Any, steps: Steps) -> None:
        def attention(forward: Forward, kind: str) -> Forward:
            kept: list[Tensor] = []

            def run(*given: Any) -> Tensor:
                step = steps.now
                fresh = step in (0, 1, 2, 4, 6) if kind != "cross" else step < 5
                if fresh:
                    kept[:] = [forward(*given)]
                elif step >= 5:  # the mean of means is the mean
                    kept[:] = [torch.cat([torch.stack(kept[0].chunk(2)).mean(0)] * 2)]
                return kept[0]

            return run

        for module, kind in attention_modules(pipe.transformer):
            module.forward = attention(module.forward, kind)

    close(latents(open_sora(), TGate(5 / 8, sp_interval=2, fi_interval=3)), by_hand(write))


def test_t_gate_keeps_a_batch_of_one_branch_whole():
    executed = execute(open_sora(), TGate(0.5, 1), FIRST, ALONE)[1]
    assert executed.elements == [1] * 8 and executed.attention_calls == [8] * 4 + [4] * 4


@pytest.mark.parametrize(
    "prepare",
    [
        lambda denoiser: add_hook_to_module(denoiser, ModelHook()),
        pytest.param(lambda denoiser: denoiser.compile(backend="eager"), marks=pytest.mark.slow),
    ],
    ids=["offloaded", "compiled"],
)
def test_t_gate_halves_the_batch_of_a_denoiser_that_is_offloaded_or_compiled(prepare: Callable[[Any], Any]):
    pipe = open_sora()
    prepare(pipe.transformer)
    found, executed = execute(pipe, TGate(0.5, 1), FIRST, CALL, decode=False)
    assert executed.elements == [2] * 4 + [1] * 4
    assert torch.equal(found, latents(open_sora(), TGate(0.5, 1)))


@pytest.mark.parametrize("implementation", ["auto", "diffusers", "ours"])
def test_pab_reuses_every_kind_of_attention_by_its_own_range(implementation: Any):
    ranges = {"self": 2, "temporal": 3, "cross": 4}

    def write(pipe: Any, steps: Steps) -> None:
        def attention(forward: Forward, every: int) -> Forward:
            kept: list[Tensor] = []

            def run(*given: Any) -> Tensor:
                inside = WINDOW[0] < pipe.scheduler.timesteps[steps.now] < WINDOW[1]
                if not inside or steps.now % every == 0:
                    kept[:] = [forward(*given)]
                return kept[0]

            return run

        for module, kind in attention_modules(pipe.transformer):
            module.forward = attention(module.forward, ranges[kind])

    method = PAB(*ranges.values(), window=WINDOW, implementation=implementation)
    close(latents(open_sora(), method), by_hand(write))


def test_temporal_attention_goes_with_self_attention_where_it_has_no_range():
    executed = execute(open_sora(), PAB(2, window=WINDOW), FIRST, CALL)[1]
    assert executed.attention_calls == [8, 4, 8, 4, 8, 4, 8, 8]
    assert torch.equal(latents(open_sora(), PAB(2, window=WINDOW)), latents(open_sora(), PAB(2, 2, window=WINDOW)))


def test_branches_come_in_one_batch():
    pipe = open_sora()
    assert (branches(pipe, CALL), branches(pipe, {}), branches(pipe, ALONE)) == ("batch", "batch", "one")
    assert by_diffusers("auto", pipe, CALL)


@pytest.mark.parametrize("method", [TeaCache(0.6, IDENTITY), TeaCache(0.3, COEFFICIENTS["Open-Sora 1.2"])])
def test_teacache_is_what_its_rule_says(method: TeaCache):
    ran: list[int] = []

    def write(pipe: Any, steps: Steps) -> None:
        model = pipe.transformer
        entry: list[Tensor] = []
        state: dict[str, Any] = {"total": 0.0}

        def first(hidden: Tensor, captions: Tensor, temb: Tensor, frames: int, *rest: Any) -> Tensor:
            table = model.spatial_blocks[0].scale_shift_table
            shift, scale = table[0] + temb[:, 0, 0], table[1] + temb[:, 0, 1]
            normed = functional.layer_norm(hidden, hidden.shape[-1:], eps=1e-6)
            signal = normed * (1 + scale[:, None]) + shift[:, None]
            if 0 < steps.now < 7:
                change = (signal - state["signal"]).abs().mean() / state["signal"].abs().mean()
                state["total"] += np.poly1d(method.coefficients)(change.item())
            state["signal"], state["reused"] = signal, 0 < steps.now < 7 and state["total"] < method.threshold
            entry[:] = [hidden]
            if state["reused"]:
                return hidden
            state["total"] = 0.0
            ran.append(steps.now)
            return forwards[0](hidden, captions, temb, frames, *rest)

        def later(index: int) -> Forward:
            def run(hidden: Tensor, *rest: Any) -> Tensor:
                if not state["reused"]:
                    hidden = forwards[index](hidden, *rest)
                    state["residual"] = hidden - entry[0]
                    return hidden
                return entry[0] + state["residual"] if index == 3 else hidden

            return run

        blocks = blocks_of(model)
        forwards = [block.forward for block in blocks]
        for index, block in enumerate(blocks):
            block.forward = later(index) if index else first

    expected = by_hand(write)
    found, executed = execute(open_sora(), method, FIRST, CALL, decode=False)
    assert executed.block_calls == [4 * (step in ran) for step in range(8)]
    assert 2 < len(ran) < 8, "the case is meant to mix computed and reused steps"
    close(found, expected)


def test_the_signal_is_what_the_first_spatial_attention_is_given():
    class Listener(SignalController):
        def entered(self, run: Any, context: str, signal: Tensor) -> None:
            heard.append(signal.clone())

    pipe, heard = open_sora(), list[Tensor]()
    seen: list[Tensor] = []
    attention: nn.Module = pipe.transformer.spatial_blocks[0].attn
    handle = attention.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    run_pipeline(pipe, FIRST, Listener(False), {**CALL, "num_inference_steps": 2}, hidden=True, decode=False)
    handle.remove()
    assert len(heard) == len(seen) == 2
    assert all(torch.equal(signal.flatten(0, 1), rows) for signal, rows in zip(heard, seen, strict=True))


def test_first_block_cache_finds_the_blocks_in_the_order_they_run():
    pipe = open_sora()
    pipe.transformer.transformer_blocks = nn.ModuleList(blocks_of(pipe.transformer))
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    assert torch.equal(latents(open_sora(), FirstBlockCache(0.2)), latents(pipe))


def test_faster_cache_rebuilds_the_unconditional_branch():
    method = FasterCache(attention_window=(-1, 600), uncond_range=3, uncond_window=(-1, 600))
    executed = execute(open_sora(), method, FIRST, CALL)[1]
    assert executed.elements == [2, 1, 1, 2, 1, 1, 2, 1]
