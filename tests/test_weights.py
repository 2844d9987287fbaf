"""The fingerprint of a denoiser's weights: one for a checkpoint however it is loaded, another for a fine-tune."""

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

import ertacache.runtime.apply as ertacache
from cached import profile
from ertacache.pipelines.weights import fingerprint_of, weights_hash
from ertacache.profile.profile import Profile
from ertacache.profile.weights import ENTRIES, Fingerprint
from ertacache.runtime.identity import warn_of_weights
from pipelines import wan
from video_profiles import wan22


def of(pipe: Any) -> Profile:
    here = profile(pipe, "output")
    return replace(here, provenance=replace(here.provenance, weights=fingerprint_of(pipe)))


def told(pipe: Any, wanted: Profile) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_weights(wanted, pipe)
    return [str(one.message) for one in caught]


def difference(before: str, after: str) -> str:
    return Fingerprint.parse(before, "before").difference(Fingerprint.parse(after, "after"))


class Linear(nn.Module):
    """Two tensors whose sampled entries are known."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("scale", torch.tensor([0.5]))
        self.register_buffer("computed", torch.ones(3), persistent=False)


class Holder:
    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer


def test_it_is_two_entries_of_each_weight_in_the_order_of_their_names() -> None:
    found = Fingerprint.parse(fingerprint_of(Holder(Linear(torch.arange(12.0).reshape(3, 4).T))), "found")
    # `scale`, which is not computed, comes first; the transposed weight counts 0 4 8 1 5 9 ...
    assert found.entries.tolist() == [[0.5, 0.5], [5.0, 10.0]]
    assert fingerprint_of(Holder(Linear(torch.zeros(6)))) == f"{found.names}:AD8APwAAAAA="
    assert Fingerprint.parse(str(found), "again").entries.equal(found.entries) and found.entries.shape[1] == ENTRIES


@pytest.mark.parametrize(
    "path", ["bfloat16", "float16", "bfloat16 float16", "float16 bfloat16", "bfloat16 float32", "float64"]
)
def test_one_checkpoint_in_every_floating_dtype(flux: Any, path: str) -> None:
    wanted, back = of(flux), copy.deepcopy(flux.transformer)
    for dtype in path.split():
        flux.transformer.to(getattr(torch, dtype))
    assert told(flux, wanted) == []
    half = of(flux)
    flux.transformer = back
    assert told(flux, half) == []


def test_every_number_survives_every_rounding() -> None:
    """Brute force over what weights may be, tiny ones included, and over all ways to round them twice."""
    numbers = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-9, 4, 20_000)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    ways = [numbers.to(first).to(second).bfloat16().view(-1, ENTRIES) for first in dtypes for second in dtypes]
    for one in ways:
        for other in ways:
            assert Fingerprint("0" * 16, one).difference(Fingerprint("0" * 16, other)) == ""
    moved = (numbers * (1 + 2**-5)).bfloat16().view(-1, ENTRIES)
    count = int((numbers.abs() > 2**-18).view(-1, ENTRIES).any(1).sum())
    words = Fingerprint("0" * 16, ways[0]).difference(Fingerprint("0" * 16, moved))
    assert int(words.split()[0]) >= count and words.endswith(f"of {len(moved)} tensors differ")


def test_the_same_weights_held_otherwise(flux: Any) -> None:
    wanted = of(flux)
    plain = flux.transformer
    plain.fuse_qkv_projections()
    assert any("to_qkv" in name for name, _ in plain.named_parameters()) and told(flux, wanted) == []
    plain.unfuse_qkv_projections()
    flux.transformer = torch.compile(plain, backend="eager")
    assert told(flux, wanted) == []
    flux.transformer = plain
    plain.transformer_blocks[0] = torch.compile(plain.transformer_blocks[0], backend="eager")
    assert told(flux, wanted) == [] and fingerprint_of(flux) == wanted.provenance.weights


def test_sequential_offload_keeps_them_in_the_hook(flux: Any) -> None:
    wanted, whole = of(flux), weights_hash(flux)
    cpu_offload(flux.transformer, execution_device=torch.device("cpu"))
    assert all(one.is_meta for one in flux.transformer.parameters())
    assert fingerprint_of(flux) == wanted.provenance.weights and weights_hash(flux) == whole
    for module in flux.transformer.modules():
        vars(module).pop("_hf_hook", None)
    assert fingerprint_of(flux) == "" and told(flux, wanted) == []  # nowhere to be had


def test_a_fine_tune_is_told_by_enable_and_apply(flux: Any) -> None:
    wanted = of(flux)
    with torch.no_grad():
        flux.transformer.transformer_blocks[1].attn.to_q.weight.mul_(1.05)
    tensors = len(list(flux.transformer.parameters()))
    words = (
        f"these are other weights of FluxTransformer2DModel than the profile was calibrated on: 1 of {tensors} tensors "
        r"differ \(a fine-tune, a LoRA, an IP-Adapter\); the measured loss may not hold: calibrate on this model"
    )
    with pytest.warns(UserWarning, match=words) as caught:
        ertacache.enable(flux, wanted)
    ertacache.disable(flux)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=words), ertacache.apply(flux, wanted):
        pass


def test_tensors_that_are_added_are_told(flux: Any) -> None:
    """As a LoRA or an IP-Adapter does, whose own names differ from library to library."""
    wanted = of(flux)
    flux.transformer.proj_out.register_parameter("lora_A", nn.Parameter(torch.zeros(2, 2)))
    assert len(told(flux, wanted)) == 1 and "its tensors have other names" in told(flux, wanted)[0]


def test_of_packed_weights_nothing_is_said(flux: Any) -> None:
    """Those in fewer bits, and in a class of their own; what is not packed is still compared."""

    class Packed(torch.Tensor):
        pass

    wanted, linear = of(flux), flux.transformer.proj_out
    linear.weight = nn.Parameter(torch.zeros(9, dtype=torch.uint8), requires_grad=False)
    linear.register_parameter("scales", nn.Parameter(torch.ones(1)))
    assert told(flux, wanted) == []  # other names say nothing either
    vars(linear)["_parameters"].pop("scales")
    linear.weight = nn.Parameter(torch.zeros(3, 3).as_subclass(Packed), requires_grad=False)
    assert told(flux, wanted) == []
    linear.weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.float8_e4m3fn), requires_grad=False)
    assert told(flux, wanted) == []
    with torch.no_grad():
        linear.bias.add_(1)
    assert "1 of" in told(flux, wanted)[0]


def test_both_denoisers_count() -> None:
    pipe = wan22()
    before = fingerprint_of(pipe)
    with torch.no_grad():
        pipe.transformer_2.proj_out.bias.add_(1)
    assert difference(before, fingerprint_of(pipe)).startswith("1 of ")
    assert difference(fingerprint_of(wan()), fingerprint_of(wan22())) == "its tensors have other names"


def test_older_files_know_no_weights(flux: Any) -> None:
    assert profile(flux, "output").provenance.weights == "" and told(flux, profile(flux, "output")) == []


def test_a_pipeline_is_named_by_the_weights_of_all_its_parts(flux: Any) -> None:
    """Whatever their dtypes are."""
    names = [weights_hash(flux), weights_hash(copy.deepcopy(flux))]
    flux.vae.to(torch.bfloat16)
    names.append(weights_hash(flux))
    flux.transformer.proj_out.weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.float8_e4m3fn), requires_grad=False)
    names.append(weights_hash(flux))
    assert names[0] == names[1] and len(set(names)) == 3
