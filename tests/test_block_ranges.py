"""Ranges of blocks that are replaced by what they added, on stacks whose numbers are known."""

import pytest
import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

from dummy_pipeline import PROMPTS, DummyPipeline
from ertacache.baselines.block_ranges import BlockRanges, BlockTokens, RangeCache, consecutive
from ertacache.errors import CacheConflict, UnsupportedPipeline
from ertacache.pipelines.overrides import Overrides
from ertacache.runtime.hooks import attached


class Joint(nn.Module):
    """(image, text) -> (a · image + text, text + a), returned as (text, image) like FLUX's."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a, self.runs = a, 0

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        self.runs += 1
        return encoder_hidden_states + self.a, self.a * hidden_states + encoder_hidden_states


class ImageFirst(Joint):
    """The same, returned as (image, text) like CogVideoX's."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(hidden_states, encoder_hidden_states)[::-1]


class ImageOnly(Joint):
    """The text is read and not changed, like Wan's."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states, encoder_hidden_states)[1]


ROWS = {Joint: (1, 0), ImageFirst: (0, 1), ImageOnly: (0, None)}


@pytest.fixture(autouse=True)
def known_blocks(monkeypatch):
    TransformerBlockRegistry._register()
    for block, (hidden, text) in ROWS.items():
        row = TransformerBlockMetadata(return_hidden_states_index=hidden, return_encoder_hidden_states_index=text)
        row._cls = block
        monkeypatch.setitem(TransformerBlockRegistry._registry, block, row)


class Stack:
    """Blocks that run on one number of image and one of text."""

    def __init__(self, blocks: list[Joint]) -> None:
        self.blocks, self.ranges = blocks, BlockRanges(blocks)
        self.ranges.install(Overrides())

    def run(self, image: float, text: float) -> Tensor:
        """Both numbers after the last block."""
        hidden, encoder = torch.tensor([image]), torch.tensor([text])
        for block in self.blocks:
            output = block(hidden, encoder_hidden_states=encoder)
            if isinstance(block, ImageOnly):
                hidden = output
            else:
                hidden, encoder = output if isinstance(block, ImageFirst) else output[::-1]
        return torch.cat([hidden, encoder])

    @property
    def runs(self) -> list[int]:
        return [block.runs for block in self.blocks]


def test_a_range_adds_what_it_added_to_image_and_text():
    stack = Stack([Joint(2.0), Joint(3.0), Joint(5.0)])
    middle = (range(1, 3),)
    # From (1, 1): block 0 gives (3, 3), block 1 (12, 6), block 2 (66, 11). The range added (63, 8).
    computed = stack.ranges.compute("cond", middle, lambda: stack.run(1.0, 1.0))
    assert computed.tolist() == [66.0, 11.0]
    # From (10, 2): block 0 gives (22, 4), the range then adds its (63, 8); the wrong sign would give (-41, -4).
    assert stack.ranges.reuse("cond", middle, lambda: stack.run(10.0, 2.0)).tolist() == [85.0, 12.0]
    assert stack.runs == [2, 1, 1]


def test_a_range_goes_over_blocks_that_return_their_tokens_in_another_order():
    stack = Stack([Joint(2.0), ImageFirst(3.0)])
    whole = (range(2),)
    # (1, 1) -> (3, 3) -> (12, 6): added (11, 5).
    assert stack.ranges.compute("cond", whole, lambda: stack.run(1.0, 1.0)).tolist() == [12.0, 6.0]
    assert stack.ranges.reuse("cond", whole, lambda: stack.run(100.0, 50.0)).tolist() == [111.0, 55.0]
    assert stack.runs == [1, 1]


def test_text_that_the_blocks_leave_alone_is_left_alone():
    stack = Stack([ImageOnly(2.0), ImageOnly(3.0)])
    whole = (range(2),)
    # (1, 1) -> 3 -> 10: added 9.
    assert stack.ranges.compute("cond", whole, lambda: stack.run(1.0, 1.0)).tolist() == [10.0, 1.0]
    assert stack.ranges.reuse("cond", whole, lambda: stack.run(5.0, 7.0)).tolist() == [14.0, 7.0]


def test_two_ranges_with_a_block_between_them():
    stack = Stack([ImageOnly(2.0), ImageOnly(3.0), ImageOnly(5.0)])
    apart = (range(1), range(2, 3))
    # Text 0, from 1: 2, 6, 30; block 0 adds 1, block 2 adds 24.
    assert stack.ranges.compute("cond", apart, lambda: stack.run(1.0, 0.0))[0] == 30.0
    # From 10: + 1, × 3, + 24.
    assert stack.ranges.reuse("cond", apart, lambda: stack.run(10.0, 0.0))[0] == 57.0
    assert stack.runs == [1, 2, 1]


def test_overlapping_ranges_are_kept_side_by_side():
    stack = Stack([ImageOnly(2.0), ImageOnly(3.0), ImageOnly(5.0)])
    front, rear = range(2), range(1, 3)
    stack.ranges.compute("cond", (front, rear), lambda: stack.run(1.0, 0.0))  # 2, 6, 30
    assert stack.ranges.reuse("cond", (front,), lambda: stack.run(10.0, 0.0))[0] == (10 + 5) * 5
    assert stack.ranges.reuse("cond", (rear,), lambda: stack.run(10.0, 0.0))[0] == 10 * 2 + 28


def test_contexts_keep_their_own_and_computing_drops_the_old():
    stack = Stack([ImageOnly(2.0)])
    whole, ranges = (range(1),), stack.ranges
    ranges.compute("cond", whole, lambda: stack.run(1.0, 0.0))
    ranges.compute("uncond", whole, lambda: stack.run(4.0, 0.0))
    assert ranges.reuse("cond", whole, lambda: stack.run(10.0, 0.0))[0] == 11.0
    assert ranges.reuse("uncond", whole, lambda: stack.run(10.0, 0.0))[0] == 14.0
    ranges.compute("cond", (), lambda: stack.run(1.0, 0.0))
    assert not ranges.holds("cond", whole)
    assert ranges.holds("uncond", whole)
    ranges.clear()
    assert not ranges.holds("uncond", whole)


def test_blocks_that_do_not_pass_by_are_noticed():
    stack = Stack([ImageOnly(2.0)])
    with pytest.raises(CacheConflict, match="without passing by the cache"):
        stack.ranges.compute("cond", (range(1),), lambda: torch.zeros(1))


def test_a_call_that_dies_leaves_no_range_switched_on():
    stack = Stack([ImageOnly(2.0)])
    stack.ranges.compute("cond", (range(1),), lambda: stack.run(1.0, 0.0))
    with pytest.raises(ZeroDivisionError):
        stack.ranges.reuse("cond", (range(1),), lambda: torch.zeros(1) / (1 // 0))
    assert stack.run(10.0, 0.0)[0] == 20.0


def test_a_block_of_an_unknown_class_is_refused():
    with pytest.raises(UnsupportedPipeline, match="a block of class Linear are not known"):
        BlockTokens(nn.Linear(1, 1))


def test_a_part_with_a_compiled_call_is_wrapped_around_that_call():
    block = ImageOnly(2.0)
    vars(block)["_compiled_call_impl"] = lambda *args, **kwargs: torch.tensor(7.0)
    overrides = Overrides()
    overrides.replace_part(block, lambda original, module, *args: original(*args) + 1)
    assert block(torch.zeros(1)) == 8.0
    overrides.remove()
    assert block(torch.zeros(1)) == 7.0


def test_indices_become_ranges():
    assert consecutive([5, 0, 2, 3, 2]) == (range(1), range(2, 4), range(5, 6))
    assert consecutive([]) == ()


class WanTransformer3DModel(nn.Module, CacheMixin):
    """Two blocks under the name by which the package knows where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([ImageOnly(0.5), ImageOnly(0.25)])

    def forward(self, hidden_states, timestep, label=None, return_dict=True):
        for block in self.blocks:
            hidden_states = block(hidden_states, encoder_hidden_states=timestep[:, None] / 1000)
        return (hidden_states,)


def executed_per_step(pipe: DummyPipeline, plan: list[tuple[range, ...]]) -> list[tuple[int, ...]]:
    """Runs of either block in each step that was made."""
    pipe.set_progress_bar_config()
    blocks = pipe.transformer.blocks
    seen: list[tuple[int, ...]] = []

    class Counting(RangeCache):
        def end_step(self, run, x_next):
            seen.append(tuple(block.runs for block in blocks))
            for block in blocks:
                block.runs = 0
            super().end_step(run, x_next)

    with attached(pipe, Counting(lambda T: plan)) as attachment:
        pipe(PROMPTS[:1], len(plan), generator=[torch.Generator().manual_seed(0)], output_type="latent")
        assert not attachment.controller._ranges._deltas, "what was kept outlives the run"
    return seen


def test_a_plan_is_followed_by_both_branches():
    pipe = DummyPipeline(WanTransformer3DModel(), (2,), branches=True)
    front, rear = (range(1),), (range(1, 2),)
    assert executed_per_step(pipe, [(), rear, front, (), front]) == [(2, 2), (2, 0), (0, 2), (2, 2), (0, 2)]


def test_a_late_start_computes_what_is_not_there():
    pipe = DummyPipeline(WanTransformer3DModel(), (2,), branches=False)
    pipe.start = 3
    front, rear = (range(1),), (range(1, 2),)
    # The first step kept the rear range, which the steps after step 0 need; step 4 finds no front range.
    assert executed_per_step(pipe, [(), rear, (), front, front, front]) == [(1, 1), (1, 1), (0, 1)]
