"""Δ-DiT as a compared method."""

import pytest
import torch
from torch import Tensor

from dummy_pipeline import mixture_pipeline
from ertacache.baselines.delta_dit import DeltaDiT
from ertacache.errors import InvalidArgument
from ertacache.evaluation.execute import execute
from ertacache.evaluation.match_cost import match_cost
from method_contract import FIRST, PIPELINES, check_contract
from pipelines import CALL, CFG_CALL, VIDEO_CALL, cogvideox, flux


@pytest.mark.parametrize(("build", "call", "blocks", "branches"), PIPELINES)
def test_two_thirds_of_the_blocks_are_skipped_between_every_third_step(build, call, blocks, branches):
    executed = check_contract(build, DeltaDiT(skipped=4 / 9, interval=3), call)
    full, rest = branches * blocks, branches * blocks // 3
    assert executed.block_calls == [full, rest, rest] * 3 + [full]
    assert executed.denoiser_calls == [branches] * 10


def test_the_range_moves_from_the_rear_to_the_front_at_the_gate():
    front, rear = (range(4),), (range(2, 6),)
    assert DeltaDiT(skipped=4 / 9, interval=3, gate=0.5).ranges(10, 6) == [
        (), rear, rear, (), rear, front, (), front, front, (),
    ]  # fmt: skip
    assert DeltaDiT(skipped=0.5, gate=0.0).ranges(4, 6) == [(), (range(6),), (), (range(6),)]


@pytest.mark.parametrize(
    ("skipped", "N", "blocks"),
    [(0.1, 2, 12), (0.5, 2, 60), (0.51, 3, 46), (2 / 3, 3, 60), (0.75, 4, 60), (0.9, 10, 60)],
)
def test_the_interval_is_the_least_that_skips_enough(skipped, N, blocks):
    method = DeltaDiT(skipped=skipped)
    assert method.N == N
    assert [len(skips) for skips in method.ranges(N + 1, 60)] == [0] + [1] * (N - 1) + [0]
    assert len(method.ranges(N + 1, 60)[1][0]) == blocks


def flux_by_hand(pipe, N_c: int, interval: int, gate: float, branches: int, sign: int = 1) -> None:
    """Replace the denoiser's forward by an explicit loop over its blocks, with Δ-DiT written out."""
    model, calls, kept = pipe.transformer, [], {}
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]

    def stack(image: Tensor, text: Tensor, indices: range, temb: Tensor, rotary: tuple[Tensor, Tensor]):
        for index in indices:
            text, image = blocks[index](image, text, temb, rotary)
        return image, text

    def forward(
        hidden_states, encoder_hidden_states, timestep, pooled_projections, img_ids, txt_ids, guidance=None, **_
    ):
        step, branch = divmod(len(calls), branches)
        calls.append(branch)
        times = [timestep * 1000] + ([] if guidance is None else [guidance * 1000])
        temb = model.time_text_embed(*times, pooled_projections)
        rotary = model.pos_embed(torch.cat([txt_ids, img_ids]))
        image, text = model.x_embedder(hidden_states), model.context_embedder(encoder_hidden_states)
        count = len(blocks)
        first = count - N_c if step < gate * 10 else 0
        if step % interval == 0:
            states = [(image, text)]
            for index in range(count):
                states.append(stack(*states[-1], range(index, index + 1), temb, rotary))
            kept[branch] = states
            image = states[-1][0]
        else:
            image, text = stack(image, text, range(first), temb, rotary)
            start, end = kept[branch][first], kept[branch][first + N_c]
            image, text = image + sign * (end[0] - start[0]), text + sign * (end[1] - start[1])
            image, text = stack(image, text, range(first + N_c, count), temb, rotary)
        return (model.proj_out(model.norm_out(image, temb)),)

    model.forward = forward


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize(("N_c", "interval", "gate"), [(3, 2, 0.5), (4, 3, 0.5), (5, 4, 0.3)])
def test_it_is_what_an_explicit_loop_over_the_blocks_does(N_c, interval, gate, branches):
    call = CALL if branches == 1 else CFG_CALL
    method = DeltaDiT(skipped=N_c / 6 * (1 - 1 / interval), interval=interval, gate=gate)
    ours = execute(flux(branches == 1), method, FIRST, call, decode=False)[0]
    by_hand, wrong = flux(branches == 1), flux(branches == 1)
    flux_by_hand(by_hand, N_c, interval, gate, branches)
    flux_by_hand(wrong, N_c, interval, gate, branches, sign=-1)
    assert (ours - execute(by_hand, None, FIRST, call, decode=False)[0]).abs().max() < 1e-5
    assert (ours - execute(wrong, None, FIRST, call, decode=False)[0]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "cached", "of_three"), [("N_c=4, N=2", 4, 1), ("N_c=8, N=2", 8, 1), ("N_c=12, N=2", 12, 2)]
)
def test_published_settings(name, cached, of_three):
    method = DeltaDiT.published()["CogVideoXTransformer3DModel"][name]
    assert method.ranges(4, 30) == [(), (range(30 - cached, 30),), (), (range(cached),)]
    executed = execute(cogvideox(), method, FIRST, VIDEO_CALL)[1]
    assert executed.block_calls == [3, 3 - of_three] * 5


def test_the_knob_goes_from_nothing_to_one_step_in_ten():
    nothing = execute(flux(), DeltaDiT().at(0.0), FIRST, CALL)[1]
    assert nothing.block_calls == [6] * 10
    most = execute(flux(), DeltaDiT().at(0.9), FIRST, CALL)[1]
    assert most.block_calls == [6] + [0] * 9


def test_more_to_skip_never_skips_less():
    skipped = [sum(len(s) for r in DeltaDiT(skipped=n / 500).ranges(2520, 6) for s in r) for n in range(451)]
    assert skipped == sorted(skipped)


@pytest.mark.parametrize("target", [0.5, 0.33])
def test_the_knob_reaches_the_costs_of_interest_on_six_blocks(target):
    def cost(method: DeltaDiT) -> float:
        return 1 - sum(len(span) for skips in method.ranges(30, 6) for span in skips) / 180

    assert abs(match_cost(DeltaDiT(), target, cost).cost - target) < 0.01


def test_a_denoiser_with_unknown_blocks_is_refused():
    assert DeltaDiT().refusal(mixture_pipeline(), {"num_inference_steps": 10}) == "its blocks are not known"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"skipped": 1.0}, "skipped is 1; choose a share from 0 to below 1"),
        ({"gate": -0.1}, "gate is -0.1; choose a share from 0 to 1"),
        ({"interval": 1}, "interval is 1; choose 2 or more"),
        ({"skipped": 0.6, "interval": 2}, "skipped is 0.6, and an interval of 2 skips 0.5 at most"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(InvalidArgument, match=message):
        DeltaDiT(**setting)
