"""Open-Sora 1.2's transformer: the reference's tensors, a second witness in float64, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor

import stdit3_by_hand
from ertacache.errors import InvalidArgument
from ertacache.opensora.embeddings import frequencies
from ertacache.opensora.transformer import STDiT3Transformer3DModel
from open_sora_small import arguments, reference, run, transformer


@pytest.fixture(scope="module")
def tiny() -> STDiT3Transformer3DModel:
    return transformer()


# The reference's tensors


def published(rounded: bool) -> tuple[STDiT3Transformer3DModel, dict[str, Any], dict[str, Tensor]]:
    given = reference("stdit3-tiny-fixture.safetensors")
    model = transformer(
        caption_channels=32, hidden_size=144, model_max_length=12, rounded_frequencies=rounded
    )  # fmt: skip
    model.load_state_dict({name[3:]: tensor for name, tensor in given.items() if name.startswith("sd.")})
    call = {name: given[f"in.{name}"] for name in ("timestep", "fps", "height", "width")}
    call |= {"hidden_states": given["in.x"], "encoder_hidden_states": given["in.y"][:, 0]}
    return model, call | {"encoder_attention_mask": given["in.mask"].repeat(2, 1)}, given


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest entry."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_it_agrees_with_the_reference_in_float32():
    model, call, given = published(rounded=False)
    assert apart(run(model, **call), given["out.fp32"]) < 1e-5
    clean = torch.tensor([[False, True, True]] * 2)
    assert apart(run(model, **call, frame_mask=clean), given["out.fp32_xmask_first_frame_clean"]) < 1e-5


def test_rounded_frequencies_are_what_the_reference_has_in_bfloat16():
    rounded, call, given = published(rounded=True)
    expected = given["out.bf16_run_as_fp32"]
    exact = published(rounded=False)[0]
    near, far = ((run(model.bfloat16(), **call) - expected).norm() for model in (rounded, exact))
    assert near < 0.0075 * expected.norm() < far


# The second witness


def by_hand(model: STDiT3Transformer3DModel, call: dict[str, Any], moving: list[list[bool]], rounded: bool) -> Tensor:
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    mask = call["encoder_attention_mask"]
    samples = zip(call["hidden_states"], call["timestep"].tolist(), call["encoder_hidden_states"], mask, strict=True)
    return torch.stack(
        [
            stdit3_by_hand.velocity(
                weights, x, time, caption[seen], call["fps"].item(), (call["height"].item(), call["width"].item()),
                moving[n], heads=2, rounded=rounded,
            )
            for n, (x, time, caption, seen) in enumerate(samples)
        ]
    )  # fmt: skip


@pytest.mark.parametrize("rounded", [False, True], ids=["exact", "rounded"])
@pytest.mark.parametrize(
    ("frames", "size", "lengths", "fixed"),
    [
        (3, (5, 7), (7, 3), None),
        (4, (4, 6), (1, 7), [[True, True, False, True], [False, False, False, False]]),
        (1, (3, 2), (2, 5), None),
        (1, (2, 5), (7, 7), [[True], [False]]),
    ],
    ids=["odd grid", "fixed frames", "one frame", "one fixed frame"],
)
def test_a_second_formulation_agrees(
    frames: int, size: tuple[int, int], lengths: tuple[int, int], fixed: list[list[bool]] | None, rounded: bool
):
    model = transformer(rounded_frequencies=rounded).double()
    call = arguments(frames=frames, size=size, lengths=lengths)
    call["timestep"] = call["timestep"].double()
    moving = [[not still for still in row] for row in fixed] if fixed else [[True] * frames] * 2
    expected = by_hand(model, call, moving, rounded)
    found = run(model, **call, frame_mask=torch.tensor(moving) if fixed else None)
    assert found.dtype == torch.float64
    assert found.shape == (2, 8, frames, *size)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_mask_of_all_is_no_mask(tiny: STDiT3Transformer3DModel):
    call = arguments(lengths=(7, 7))
    plain = run(tiny, **{**call, "encoder_attention_mask": None})
    torch.testing.assert_close(run(tiny, **call), plain, rtol=0, atol=1e-6)
    every = torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(run(tiny, **{**call, "encoder_attention_mask": None}, frame_mask=every), plain)


def test_tokens_that_do_not_count_change_no_bit(tiny: STDiT3Transformer3DModel):
    call = arguments()
    plain = run(tiny, **call)
    call["encoder_hidden_states"][1, 3:] = 1e3
    assert torch.equal(run(tiny, **call), plain)
    call["encoder_attention_mask"] = call["encoder_attention_mask"].long()
    assert torch.equal(run(tiny, **call), plain)


def test_one_number_for_the_batch_is_one_for_each_sample(tiny: STDiT3Transformer3DModel):
    call = arguments()
    call["timestep"] = torch.tensor([500.0])
    plain = run(tiny, **call)
    call |= {name: call[name].expand(2) for name in ("timestep", "fps", "height", "width")}
    assert torch.equal(run(tiny, **call), plain)


def test_the_rounded_frequencies_at_the_published_sizes_lie_far_from_a_tie():
    """So that a device whose powers are off in the last bits rounds them alike."""
    for dim in (72, 576):
        exact = torch.tensor([10_000 ** (-2 * j / dim) for j in range(dim // 2)], dtype=torch.float64)
        for nudge in (-8, 0, 8):
            near = (exact * (1 + nudge * 2.0**-23)).bfloat16().float()
            assert torch.equal(near, frequencies(dim, rounded=True, dtype=torch.float32))


# Refusals

#: What is changed in the arguments, and what is said.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"hidden_states": torch.zeros(2, 8, 3, 4, 4)}, r"hidden_states has shape \[2, 8, 3, 4, 4\]; give latents \[B, 4,"),
    ({"hidden_states": torch.zeros(2, 4, 4, 4)}, r"hidden_states has shape \[2, 4, 4, 4\]; give latents"),
    ({"hidden_states": torch.zeros(2, 4, 0, 4, 4)}, r"hidden_states has shape \[2, 4, 0, 4, 4\]; give latents"),
    (
        {"encoder_hidden_states": torch.zeros(1, 7, 20)},
        r"encoder_hidden_states has shape \[1, 7, 20\]; give captions \[2, up to 7 tokens, 20\]",
    ),
    ({"encoder_hidden_states": torch.zeros(2, 8, 20)}, r"has shape \[2, 8, 20\]; give captions"),
    ({"encoder_hidden_states": torch.zeros(2, 7, 32)}, r"has shape \[2, 7, 32\]; give captions"),
    ({"encoder_hidden_states": torch.zeros(2, 1, 7, 20)}, r"has shape \[2, 1, 7, 20\]; give captions"),
    (
        {"encoder_attention_mask": torch.ones(1, 7, dtype=torch.bool)},
        r"encoder_attention_mask has shape \[1, 7\]; it must be that of the captions, \[2, 7\], with a row for each",
    ),
    ({"encoder_attention_mask": torch.ones(2, 6, dtype=torch.bool)}, r"mask has shape \[2, 6\]; it must be that"),
    ({"encoder_attention_mask": torch.ones(2, 7)}, r"encoder_attention_mask is of torch.float32; give bool, or"),
    (
        {"encoder_attention_mask": torch.tensor([[1] * 7, [0] * 7])},
        r"encoder_attention_mask has a row in which no token counts; a caption has at least its end token",
    ),
    (
        {"frame_mask": torch.ones(2, 4, dtype=torch.bool)},
        r"frame_mask is torch.bool of shape \[2, 4\]; give bool \[2, 3\], True where a frame is generated",
    ),
    ({"frame_mask": torch.ones(2, 3)}, r"frame_mask is torch.float32 of shape \[2, 3\]; give bool \[2, 3\]"),
    ({"timestep": 500}, r"timestep is 500; give a tensor \[1\] or \[2\] with the time from 0 to 1000"),
    ({"timestep": torch.tensor([1.0, 2.0, 3.0])}, r"timestep is \[3\]; give a tensor \[1\] or \[2\] with the time"),
    ({"timestep": torch.tensor([-1.0])}, r"timestep is \[-1.0\]; give the time from 0 to 1000, not negative"),
    ({"fps": None}, r"fps is missing; give a tensor \[1\] or \[2\] with frames per second"),
    ({"fps": torch.tensor([0.0])}, r"fps is \[0.0\]; give frames per second, positive"),
    ({"height": None}, r"height is missing; give a tensor \[1\] or \[2\] with pixels"),
    ({"height": torch.tensor([480.0, -1.0])}, r"height is \[480.0, -1.0\]; give pixels, positive"),
    ({"width": torch.tensor([float("nan")])}, r"width is \[nan\]; give pixels, positive"),
    ({"width": torch.tensor(854.0)}, r"width is \[\]; give a tensor \[1\] or \[2\] with pixels"),
]


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[next(iter(change)) for change, _ in WRONG])
def test_an_argument_that_does_not_fit_is_named(tiny: STDiT3Transformer3DModel, change: dict[str, Any], said: str):
    worked: list[Any] = []
    handle = tiny.x_embedder.register_forward_pre_hook(lambda *_: worked.append(1))
    try:
        with pytest.raises(InvalidArgument, match=said):
            run(tiny, **{**arguments(), **change})
    finally:
        handle.remove()
    assert not worked


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"qk_norm": False}, "qk_norm is False; Open-Sora 1.2 has qk_norm=True only"),
        ({"model_type": "STDiT2"}, "model_type is 'STDiT2'; Open-Sora 1.2 has model_type='STDiT3' only"),
        ({"temporal_casual": True}, "temporal_casual is no key of Open-Sora 1.2's transformer; leave it out"),
        ({"hidden_size": 50, "num_heads": 4}, "hidden_size 50 is no multiple of num_heads 4; change one"),
        ({"hidden_size": 36, "num_heads": 12}, "a head has hidden_size / num_heads = 3 channels, an odd number"),
        ({"hidden_size": 42, "num_heads": 3}, "hidden_size is 42; the position embedding needs a multiple of 4"),
        ({"patch_size": (2, 2, 2)}, r"patch_size is \(2, 2, 2\); give three sizes of which the first"),
        ({"patch_size": (1, 2)}, r"patch_size is \(1, 2\); give three sizes"),
        ({"depth": 0}, "depth is 0; give a positive number"),
        ({"num_heads": 0}, "num_heads is 0; give a positive number"),
    ],
)
def test_a_configuration_that_cannot_be_is_named(change: dict[str, Any], said: str):
    with pytest.raises(InvalidArgument, match=f"^{said}"):
        transformer(**change)
