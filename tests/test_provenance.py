"""Provenance holds exactly what JSON can give back."""

from typing import Any

import pytest
import torch

from ertacache.errors import InvalidArgument
from ertacache.profile.profile import Profile
from profile_maker import facts, make


class Opaque:
    pass


class Width(int):
    pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"call": {"image": Opaque()}}, "provenance.call.image is a Opaque, which JSON cannot hold"),
        ({"call": {"sizes": [1, torch.ones(1)]}}, r"provenance.call.sizes\[1\] is a Tensor"),
        ({"heldout": {"psnr": float("inf")}}, "provenance.heldout.psnr is inf, .*write None"),
        ({"method": {1: 2}}, "provenance.method has the key 1"),
        ({"seed": True}, "provenance.seed is True; it must be a whole number"),
        ({"seed": 2**63}, "provenance.seed is a whole number of over 64 bits"),
        ({"dtype": torch.float32}, "provenance.dtype is a dtype"),
        ({"contexts": "cond"}, "provenance.contexts is 'cond'; it must be a list of texts"),
        ({"latent_shape": (16, 0)}, r"provenance.latent_shape is \[16, 0\]; it must be"),
        ({"guidance_weight": "7"}, "provenance.guidance_weight is '7'; it must be a number or None"),
        ({"versions": {"torch": 2}}, "provenance.versions is .*; it must be a dict of texts"),
        ({"call": []}, r"provenance.call is \[\]; it must be a dict"),
        ({"model_class": None}, "provenance.model_class is None; it must be a text"),
    ],
)
def test_provenance_refuses_what_json_cannot_hold(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        facts(**changes)


def test_provenance_is_kept_as_json_gives_it_back() -> None:
    kept = facts(contexts=["cond", "uncond"], call={"sizes": (Width(1), (2.5, None))}, guidance_weight=4)
    assert kept.contexts == ("cond", "uncond")
    assert kept.call == {"sizes": [1, [2.5, None]]} and type(kept.call["sizes"][0]) is int
    assert type(kept.guidance_weight) is float
    assert Profile.from_bytes(make(provenance=kept).to_bytes()).provenance == kept
    assert facts(guidance_weight=None).guidance_weight is None


def test_what_is_kept_of_each_step_comes_back() -> None:
    calls = ([0, {"uncond": 1, "cond": Width(2)}], (3, {"cond": 1}))
    kept = facts(calls=calls, step_weights=[7, 7.5, None, 1, 1], step_arguments={"eta": 0, "s_noise": 1.5})
    assert kept.calls == ((0, {"cond": 2, "uncond": 1}), (3, {"cond": 1})) and type(kept.calls[0]) is tuple
    assert kept.step_weights == (7.0, 7.5, None, 1.0, 1.0) and type(kept.step_weights[0]) is float
    assert Profile.from_bytes(make(provenance=kept).to_bytes()).provenance == kept
    two = facts(model_class="A, B", model_config={"denoisers": [{}, {"x": 1}]})
    assert Profile.from_bytes(make(provenance=two).to_bytes()).provenance == two
