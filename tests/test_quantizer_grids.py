"""Several grids for one weight: what they are, that a timestep alone chooses, and that nothing else changes."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ertacache.core.group_rounding import rounded
from ertacache.errors import InvalidArgument, UnsupportedPipeline
from ertacache.pipelines.quantizers.fake import FakeQuantLinear
from ertacache.pipelines.quantizers.grids import Turn, grid_at, shifts
from ertacache.pipelines.quantizers.quantize import quantize, quantized_copy, restore
from ertacache.pipelines.quantizers.record import quantizer_of
from ertacache.pipelines.quantizers.saved import save_quantized
from ertacache.pipelines.quantizers.scheme import Scheme
from pipelines import CALL, PROMPTS, flux


class Timed(nn.Module):
    """One layer in a list of blocks; its `forward` is as a denoiser's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, x: Tensor, timestep: Any = None, **more: Any) -> Tensor:
        return self.blocks[0](x)


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def expected(plain: nn.Module, bits: tuple[int, int], shift: float) -> Tensor:
    layer: Any = plain.blocks[0]
    return nn.functional.linear(rounded(X, bits[1], 64, shift), rounded(layer.weight, bits[0], 64, shift), layer.bias)


def test_shifts_divide_a_scale_evenly_around_none():
    assert shifts(1) == (0.0,) and shifts(2) == (-0.25, 0.25) and shifts(4) == (-0.375, -0.125, 0.125, 0.375)
    assert len(shifts(8)) == 8 and sum(shifts(8)) == 0


def test_the_mean_of_all_grids_has_the_resolution_of_a_finer_one():
    x = torch.linspace(-1, 1, 1001)
    mean = torch.stack([rounded(x, 4, 1001, shift) for shift in shifts(4)]).mean(0)
    inside = x.abs() < 6.5 / 7  # at the ends a number is missing on one side
    assert float((mean - x)[inside].abs().max()) == pytest.approx(1 / 7 / 8, rel=0.01)
    assert float((rounded(x, 4, 1001) - x).abs().max()) == pytest.approx(1 / 7 / 2, rel=0.01)


@pytest.mark.parametrize("scale", [1, 1 / 1000])
@pytest.mark.parametrize(("grids", "apart"), [(2, 0.35), (4, 0.4), (8, 0.3)])
def test_the_steps_of_a_run_share_the_grids(grids: int, apart: float, scale: float):
    for steps in (20, 28, 30, 40, 50, 100):
        found = [grid_at(1000 * (steps - i) / steps * scale, grids) for i in range(steps)]
        counts = [found.count(k) for k in range(grids)]
        assert max(counts) - min(counts) <= apart * steps, (steps, counts)


def test_the_grid_of_a_timestep_is_that_of_the_same_one_in_less_precise_numbers():
    assert [grid_at(t, 8) for t in (1000.0, 966.7, 0.5, 0.9667)] == [2, 1, 3, 3]
    assert all(grid_at(float(torch.tensor(t)), 8) == grid_at(t, 8) for t in (966.7, 33.3, 0.1, 0.9667))


@pytest.mark.parametrize(("scheme", "bits"), [("w4a4x4", (4, 4)), ("w4a8x2", (4, 8)), ("w4a16x8", (4, 16))])
def test_a_call_uses_the_grid_of_its_timestep(scheme: str, bits: tuple[int, int]):
    plain = Timed()
    module, grids = copy.deepcopy(plain), Scheme.parse(scheme).grids
    quantize(module, scheme)
    used = set[int]()
    for t in (1000.0, 966.7, 933.3, 500.0, 20.0, 1.0, 0.0):
        k = grid_at(t, grids)
        used.add(k)
        for timestep in (t, torch.tensor(t, dtype=torch.float64), torch.full((3,), t, dtype=torch.float64)):
            assert torch.equal(module(X, timestep=timestep), expected(plain, bits, shifts(grids)[k]))
            assert torch.equal(module(X, timestep), expected(plain, bits, shifts(grids)[k]))
    assert len(used) > 1


def test_tokens_of_a_given_frame_do_not_choose_and_a_call_without_a_timestep_is_refused():
    plain = Timed()
    module = copy.deepcopy(plain)
    quantize(module, "w4a4x4")
    for t in (1000.0, 20.0):
        for timestep in (torch.tensor([[0.0, t, t]]), torch.tensor([t, 0.0])):
            assert torch.equal(module(X, timestep), expected(plain, (4, 4), shifts(4)[grid_at(t, 4)]))
    for call in ({}, {"timestep": None}):
        with pytest.raises(UnsupportedPipeline, match="Timed was called without a timestep, by which steps choose"):
            module(X, **call)


def test_a_compiled_layer_changes_its_grid_too():
    module = Timed()
    quantize(module, "w4a4x4")
    plain: Any = copy.deepcopy(module)
    torch.compiler.reset()
    module.blocks[0].compile(backend="eager")
    for t in (1000.0, 500.0, 20.0, 1000.0):
        assert torch.equal(module(X, t), plain(X, t))
    torch.compiler.reset()


def test_the_keys_stay_those_of_the_plain_layer_and_copies_turn_by_themselves():
    module = Timed()
    names = list(module.state_dict())
    quantize(module, "w4a4x4")
    assert list(module.state_dict()) == names
    layer: Any = module.blocks[0]
    assert isinstance(layer, FakeQuantLinear) and "grids=4" in repr(layer)
    expected_by_time = {t: module(X, t) for t in (1000.0, 20.0)}
    assert not torch.equal(*expected_by_time.values())
    for made in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        copied: Any = made
        (hook,) = copied._forward_pre_hooks.values()
        assert hook is copied.blocks[0].turn is not layer.turn
        module(X, 20.0)
        assert torch.equal(copied(X, 1000.0), expected_by_time[1000.0])


def test_weights_that_are_loaded_or_fused_in_later_are_on_every_grid():
    module, other = Timed(), Timed()
    quantize(module, "w4a8x4")
    for change in (lambda layer: nn.init.normal_(layer.weight), lambda layer: layer.weight.data.add_(0.25)):
        change(other.blocks[0])
        if other.blocks[0].weight is not module.blocks[0].weight:
            module.load_state_dict(other.state_dict())
        for t in (1000.0, 966.7, 500.0, 20.0):
            assert torch.equal(module(X, t), expected(other, (4, 8), shifts(4)[grid_at(t, 4)]))


def test_zero_has_one_sign_and_an_empty_batch_gives_an_empty_one():
    module = Timed()
    quantize(module, "w4a4x8")
    assert grid_at(-0.0, 8) == grid_at(0.0, 8) and torch.equal(module(X, torch.tensor(-0.0)), module(X, 0))
    assert module(X[:0], torch.zeros(0)).shape == (0, 8)


def test_each_thread_has_its_own_turn():
    turn = Turn(4, 0)
    turn(Timed(), (1000.0,), {})
    with ThreadPoolExecutor(1) as pool:
        pool.submit(turn, Timed(), (20.0,), {}).result()
        assert pool.submit(lambda: turn.grid).result() == grid_at(20.0, 4) != turn.grid == grid_at(1000.0, 4)


def test_it_is_undone_bit_for_bit():
    module = Timed()
    before = module(X)
    undo = quantize(module, "w4a4x2")
    undo()
    assert type(module.blocks[0]) is nn.Linear and torch.equal(module(X), before) and not module._forward_pre_hooks


def test_a_denoiser_without_a_timestep_is_refused_before_anything_is_changed():
    class Untimed(Timed):
        def forward(self, x: Tensor, time: Any = None) -> Tensor:
            return self.blocks[0](x)

    module = Untimed()
    with pytest.raises(
        UnsupportedPipeline, match=r"Untimed.forward takes no argument 'timestep', by which the steps choose among 4 gr"
    ):
        quantize(module, "w4a4x4")
    assert type(module.blocks[0]) is nn.Linear and quantizer_of(module) is None
    quantize(module, "w4a4")


@pytest.mark.parametrize("text", ["w4a4x0", "w4a4x3", "w4a8x16"])
def test_other_numbers_of_grids_are_refused(text: str):
    with pytest.raises(InvalidArgument, match=rf"scheme '{text}' has \d+ grids; use x2, x4 or x8, or leave it out"):
        Scheme.parse(text)


def test_a_single_grid_is_the_scheme_without():
    assert Scheme.parse("W4A4x1") == Scheme.parse("w4a4") and str(Scheme.parse("w4a8X4")) == "w4a8x4"


def drawn(pipe: Any) -> Tensor:
    return pipe(PROMPTS[0], generator=torch.Generator().manual_seed(0), output_type="latent", **CALL).images


def test_a_saved_model_keeps_its_exact_weights_and_draws_the_same(tmp_path: Any):
    pipe = flux()
    pipe.set_progress_bar_config(disable=True)
    copied = quantized_copy(pipe, "w4a4x2")
    quantised = drawn(copied)
    assert not torch.equal(quantised, drawn(quantized_copy(pipe, "w4a4")))
    weights = {name: weight.clone() for name, weight in pipe.transformer.state_dict().items()}
    copied.transformer.save_pretrained(tmp_path / "live")
    save_quantized(pipe, Scheme.parse("w4a4x2"), tmp_path / "out")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):  # what is quantised already is saved alike
        live, planned = (tmp_path / one / name for one in ("live", "out/transformer"))
        assert live.read_bytes() == planned.read_bytes()
    loaded = type(pipe).from_pretrained(tmp_path / "out")
    loaded.set_progress_bar_config(disable=True)
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.transformer.state_dict().items())
    restore(loaded)
    restore(loaded)
    found: Any = quantizer_of(loaded.transformer)
    assert found["scheme"] == "w4a4x2" and len(loaded.transformer._forward_pre_hooks) == 1
    assert torch.equal(drawn(loaded), quantised)
