"""The settings that were published for Open-Sora: what they are, and that they run."""

import pytest

from ertacache.baselines.baseline import Baseline
from ertacache.baselines.delta_dit import DeltaDiT
from ertacache.baselines.pab import PAB
from ertacache.baselines.t_gate import TGate
from ertacache.baselines.teacache import TeaCache
from ertacache.evaluation.execute import execute
from method_contract import FIRST
from small_open_sora import CALL, open_sora

DENOISER = "STDiT3Transformer3DModel"


def test_published_settings():
    assert list(PAB.published()[DENOISER]) == ["2/4/6", "3/5/7", "5/7/9"]
    assert PAB.published()[DENOISER]["3/5/7"] == PAB(3, 5, 7, window=(450, 930))
    assert {name: method.threshold for name, method in TeaCache.published()[DENOISER].items()} == {
        "slow": 0.1, "fast": 0.2,
    }  # fmt: skip
    gate = TGate.published()[DENOISER]["videosys"]
    assert (gate.gate_step(30), gate.sp_interval) == (12, 2)
    # Twelve of 56 blocks, which are six pairs, in the steps 1, 3 and 5.
    spans = DeltaDiT.published()[DENOISER]["videosys"].ranges(30, 56)
    assert spans == [(range(12),) if step in (1, 3, 5) else () for step in range(30)]


@pytest.mark.parametrize("method", [DeltaDiT, TGate, PAB])
def test_published_settings_run(method: type[Baseline]):
    pipe = open_sora()
    plain = execute(pipe, None, FIRST, CALL)[1]
    for setting in method.published()[DENOISER].values():
        assert setting.refusal(pipe, CALL) is None
        executed = execute(pipe, setting, FIRST, CALL)[1]
        assert len(executed.block_calls) == 8
        assert sum(executed.attention_calls) <= sum(plain.attention_calls)
