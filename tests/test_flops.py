"""Operations against what the shapes say: a product of [m, k] and [k, n] is 2 m n k."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ertacache.baselines.fewer_steps import FewerSteps
from ertacache.baselines.taylor_seer import TaylorSeer
from ertacache.evaluation.execute import execute
from ertacache.runtime.flops import FlopCounter
from method_contract import FIRST
from pipelines import CALL, VIDEO_CALL, cogvideox, flux, wan


def counted(run) -> int:
    with FlopCounter() as counter, torch.no_grad():
        run()
    return counter.total


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias):
    layer = nn.Linear(7, 5, bias=bias)
    assert counted(lambda: layer(torch.randn(2, 3, 7))) == 2 * (2 * 3) * 5 * 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_attention_is_two_products_on_the_cpu(dtype):
    B, heads, N, M, D = 2, 3, 16, 24, 8
    query, key, value = (torch.randn(B, heads, length, D, dtype=dtype) for length in (N, M, M))
    scores, mixed = 2 * B * heads * N * M * D, 2 * B * heads * N * D * M
    assert counted(lambda: F.scaled_dot_product_attention(query, key, value)) == scores + mixed
    mask = torch.zeros(B, 1, N, M, dtype=dtype)
    assert counted(lambda: F.scaled_dot_product_attention(query, key, value, mask)) == scores + mixed


def test_convolution():
    layer = nn.Conv2d(3, 8, kernel_size=2, stride=2)
    assert counted(lambda: layer(torch.randn(2, 3, 8, 6))) == 2 * (2 * 4 * 3) * 8 * (3 * 2 * 2)


def test_element_wise_operations_are_free():
    assert counted(lambda: torch.randn(4, 4).mul(2).softmax(-1).sum()) == 0


def test_a_flux_step():
    """Linear layers by their shapes and the tokens they see, and the attention of every block."""
    pipe = flux()
    expected = 0

    def add(layer: nn.Linear, args, output):
        nonlocal expected
        expected += 2 * (output.numel() // layer.out_features) * layer.out_features * layer.in_features

    handles = [
        module.register_forward_hook(add) for module in pipe.transformer.modules() if isinstance(module, nn.Linear)
    ]
    call = {**CALL, "num_inference_steps": 1}
    execute(pipe, None, FIRST, call, decode=False)
    for handle in handles:
        handle.remove()
    config = pipe.transformer.config
    tokens, width = 64 + CALL["max_sequence_length"], config.num_attention_heads * config.attention_head_dim
    attention = (config.num_layers + config.num_single_layers) * 2 * 2 * tokens * tokens * width
    assert execute(pipe, None, FIRST, call, flops=True, decode=False)[1].flops == [expected + attention]


@pytest.mark.parametrize(("build", "call"), [(flux, CALL), (wan, VIDEO_CALL), (cogvideox, VIDEO_CALL)])
def test_every_step_costs_the_same_and_fewer_steps_cost_their_share(build, call):
    pipe = build()
    every = execute(pipe, None, FIRST, call, flops=True, decode=False)[1].flops
    assert len(every) == 10
    assert len(set(every)) == 1
    assert every[0] > 0
    half = execute(pipe, FewerSteps(0.4), FIRST, call, flops=True, decode=False)[1].flops
    assert half == every[:4]


def test_runs_of_one_signature_have_one_price():
    pipe = flux()
    executed = execute(pipe, TaylorSeer(3), FIRST, CALL, flops=True, decode=False)[1]
    priced = dict(zip(executed.signature, executed.flops, strict=True))
    assert len(priced) == len(set(executed.flops)) == 2
    assert [priced[step] for step in executed.signature] == executed.flops


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("build", "call"), [(flux, CALL), (wan, VIDEO_CALL), (cogvideox, VIDEO_CALL)])
def test_torch_counts_the_same(build, call, mode):
    """By its own mode, which knows the attention kernel of the CPU by name only."""
    pipe, kernel = build(), torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attention(query, key, value, *args, out_shape=None, **kwargs):
        return sdpa_flop_count(query, key, value)

    once = {**call, "num_inference_steps": 1, "output_type": "latent"}
    with mode():
        with FlopCounterMode(display=False, custom_mapping={kernel: attention}) as expected:
            pipe(prompt=FIRST.texts[0], **once)
        with FlopCounter() as found:
            pipe(prompt=FIRST.texts[0], **once)
    assert found.total == expected.get_total_flops() > 0
