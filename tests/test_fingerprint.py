"""Fingerprints of configurations and prompts: stable, and different where the content is."""

import hashlib
from typing import Any

import pytest
import torch

from ertacache.errors import InvalidArgument
from ertacache.profile.fingerprint import config_hash, prompt_hash, storable


class Opaque:
    pass


def test_config_hash_is_sha256_of_canonical_json() -> None:
    expected = hashlib.sha256(b'{"a": [1, 2], "b": "torch.float32"}').hexdigest()[:16]
    assert config_hash({"b": torch.float32, "_class_name": "X", "a": (1, 2)}) == expected
    assert config_hash({"a": [1, 2], "b": torch.float32, "_diffusers_version": "9"}) == expected
    assert config_hash({"a": [2, 1], "b": torch.float32}) != expected
    nested = config_hash({"rope": {"_note": 1, "theta": 10000}})
    assert nested == config_hash({"rope": {"theta": 10000}}) != config_hash({"rope": {"theta": 1}})
    assert config_hash({"a": Opaque()}) == config_hash({"a": Opaque()})


def test_storable_is_what_json_holds() -> None:
    deep: Any = {"a": 1}
    for _ in range(20):
        deep = {"a": deep}
    config = {"_private": 1, "inf": float("-inf"), "big": 2**63, "sizes": (1, 2.5), "dtype": torch.float32}
    kept = storable({**config, "deep": deep})
    nested = kept.pop("deep")
    assert kept == {"inf": "-inf", "big": str(2**63), "sizes": [1, 2.5], "dtype": "torch.float32"}
    levels = 0
    while isinstance(nested, dict):
        nested, levels = nested["a"], levels + 1
    assert levels == 7 and nested.startswith("{'a': {'a': ")
    assert storable({"a": float("nan"), "b": None, "c": True}) == {"a": "nan", "b": None, "c": True}


def test_prompt_hash_depends_on_every_prompt_and_its_place() -> None:
    assert prompt_hash(["a", "b"]) == hashlib.sha256(b'["a", "b"]').hexdigest()[:16]
    assert len({prompt_hash(p) for p in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""])}) == 4
    assert prompt_hash(("a", "b")) == prompt_hash(["a", "b"])
    with pytest.raises(InvalidArgument, match="pass a list of prompts"):
        prompt_hash("a red square")
