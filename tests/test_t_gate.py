"""T-GATE as a compared method."""

import pytest
import torch

from dummy_pipeline import mixture_pipeline
from ertacache.baselines.t_gate import TGate
from ertacache.errors import CacheConflict, InvalidArgument
from ertacache.evaluation.execute import execute
from method_contract import FIRST, check_contract
from pipelines import CALL, CFG_CALL, VIDEO_CALL, cogvideox, flux, wan

#: 3 blocks with one self- and one cross-attention module each.
NO_GUIDANCE = {**VIDEO_CALL, "guidance_scale": 1.0}


def test_one_branch_without_cross_attention_after_the_gate():
    executed = check_contract(wan, TGate(gate=0.8, sp_interval=2, warm_up=0), VIDEO_CALL)
    # m = 8: self-attention in the steps 0, 2, 4, 6 and in m − 1 = 7, always after the gate.
    assert executed.attention_calls == [12, 6, 12, 6, 12, 6, 12, 12, 3, 3]
    assert executed.denoiser_calls == [2] * 8 + [1] * 2
    assert executed.block_calls == [6] * 8 + [3] * 2


def test_warm_up_and_both_intervals():
    executed = execute(wan(), TGate(gate=0.6, sp_interval=3, fi_interval=4, warm_up=1), FIRST, VIDEO_CALL)[1]
    # m = 6: computed up to step 1, at 3 and at m − 1 = 5; after the gate at 8, which 4 divides.
    assert executed.attention_calls == [12, 12, 6, 12, 6, 12, 0, 0, 3, 0]


def test_without_guidance_the_one_branch_goes_on():
    executed = check_contract(wan, TGate(gate=0.3), NO_GUIDANCE)
    assert executed.attention_calls == [6] * 3 + [3] * 7
    assert executed.denoiser_calls == [1] * 10


def test_the_knob_goes_from_no_gate_to_a_gate_after_the_first_step():
    assert execute(wan(), TGate(sp_interval=1).at(1.0), FIRST, VIDEO_CALL)[1].attention_calls == [12] * 10
    assert execute(wan(), TGate().at(0.0), FIRST, VIDEO_CALL)[1].attention_calls == [12] + [3] * 9


def test_a_gate_that_never_comes_changes_nothing():
    plain = execute(wan(), None, FIRST, VIDEO_CALL, decode=False)[0]
    assert torch.equal(execute(wan(), TGate(gate=1.0, sp_interval=1), FIRST, VIDEO_CALL, decode=False)[0], plain)


def wan_by_hand(pipe, gate_step: int, sp_interval: int, fi_interval: int, warm_up: int, uncond_only: bool) -> None:
    """Replace the denoiser's forward by one written out, with T-GATE in it.

    `uncond_only` reuses the cross-attention of one branch where the mean of both belongs.
    """
    model, calls, kept = pipe.transformer, [], {}

    def attend(index: int, name: str, step: int, branch: int, run):
        if step < gate_step:
            if name == "cross" or step <= warm_up or step % sp_interval == 0 or step == gate_step - 1:
                kept[index, name, branch] = run()
            return kept[index, name, branch]
        if name == "self" and step % fi_interval == 0:
            kept[index, name, 0] = kept[index, name, 1] = run()
        both = kept[index, name, 0], kept[index, name, 1]
        return both[1] if uncond_only else (both[0] + both[1]) / 2

    def forward(hidden_states, timestep, encoder_hidden_states, **_):
        step, branch = divmod(len(calls), 2)
        calls.append(branch)
        shape = hidden_states.shape
        rotary = model.rope(hidden_states)
        x = model.patch_embedding(hidden_states).flatten(2).transpose(1, 2)
        temb, projected, text, _ = model.condition_embedder(timestep, encoder_hidden_states, None)
        for index, block in enumerate(model.blocks):
            table = block.scale_shift_table + projected.unflatten(1, (6, -1))
            shift, scale, gate, c_shift, c_scale, c_gate = table.chunk(6, dim=1)
            normed = block.norm1(x) * (1 + scale) + shift
            x = x + gate * attend(index, "self", step, branch, lambda b=block, n=normed: b.attn1(n, None, None, rotary))
            normed = block.norm2(x)
            x = x + attend(index, "cross", step, branch, lambda b=block, n=normed: b.attn2(n, text, None, None))
            x = x + c_gate * block.ffn(block.norm3(x) * (1 + c_scale) + c_shift)
        shift, scale = (model.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        x = model.proj_out(model.norm_out(x) * (1 + scale) + shift)
        x = x.view(len(x), shape[2], shape[3] // 2, shape[4] // 2, 1, 2, 2, -1)
        return (x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(shape),)

    model.forward = forward


@pytest.mark.parametrize("settings", [(5, 2, 1, 0), (4, 3, 3, 1), (1, 1, 2, 0)])
def test_it_is_what_a_forward_written_out_does(settings):
    m, sp_interval, fi_interval, warm_up = settings
    # The second branch is left to run there; with the mean of both it gives what the first does.
    method = TGate(m / 10, sp_interval, fi_interval, warm_up)
    ours = execute(wan(), method, FIRST, VIDEO_CALL, decode=False)[0]
    by_hand, wrong = wan(), wan()
    wan_by_hand(by_hand, *settings, uncond_only=False)
    wan_by_hand(wrong, *settings, uncond_only=True)
    apart = (ours - execute(by_hand, None, FIRST, VIDEO_CALL, decode=False)[0]).abs().max()
    assert apart < 1e-5
    assert (ours - execute(wrong, None, FIRST, VIDEO_CALL, decode=False)[0]).abs().max() > 100 * apart


@pytest.mark.parametrize(("build", "call"), [(flux, CALL), (lambda: flux(False), CFG_CALL), (cogvideox, VIDEO_CALL)])
def test_joint_attention_is_refused(build, call):
    reason = TGate().refusal(build(), call)
    assert reason == "its attention is joint: there is no cross-attention to gate"


def test_a_denoiser_with_unknown_blocks_is_refused():
    assert TGate().refusal(mixture_pipeline(), VIDEO_CALL) == "its blocks are not known"


def test_attention_that_does_not_pass_by_is_noticed():
    pipe = wan()
    pipe.transformer.blocks[1].forward = lambda hidden_states, *args: hidden_states
    with pytest.raises(CacheConflict, match="without passing by T-GATE"):
        execute(pipe, TGate(), FIRST, VIDEO_CALL)


def test_the_defaults_are_what_is_published():
    assert TGate.published() == {"STDiT3Transformer3DModel": {"videosys": TGate()}}
    assert TGate().gate_step(30) == 12


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"gate": 1.2}, "gate is 1.2; choose a share of the steps from 0 to 1"),
        ({"sp_interval": 0}, "sp_interval is 0; choose 1"),
        ({"fi_interval": 0}, "fi_interval is 0; choose 1"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(InvalidArgument, match=message):
        TGate(**setting)
