"""The operations of a forward pass of Open-Sora 1.2 are a sum by hand; the count of memory is that of a chain."""

import json
from math import prod
from typing import Any

import pytest
import torch

from benchmark_scripts import ROOT, load

C, DEPTH, CAPTION, OUT = 1152, 28, 4096, 32


@pytest.fixture(scope="module")
def script() -> Any:
    return load("open_sora_size")


def operations(latents: tuple[int, ...], tokens: int) -> int:
    """Two for each multiplication of a matrix product; embeddings, blocks and head."""
    batch, channels, frames, height, width = latents
    frame = (height // 2) * (width // 2)
    n, text = batch * frames * frame, batch * tokens
    scalar = batch * (256 * C + C * C)
    pair = 2 * (n * 14 * C * C + text * 2 * C * C) + 4 * n * tokens * C  # qkv 3, four of one, MLP 8; scores and values
    attention = 2 * n * (frame + frames) * C
    blocks = DEPTH * (2 * pair + 2 * attention)
    around = n * 4 * channels * C + n * C * OUT + text * (CAPTION * C + C * C) + 2 * scalar + batch * 6 * C * C
    return blocks + 2 * around


def test_the_result_file_is_the_sum_by_hand(script: Any):
    found = json.loads((ROOT / "benchmarks/results/open_sora_size.json").read_text())
    assert tuple(found["header"]["latents"]) == script.LATENTS == (2, 4, 15, 60, 106)
    assert found["operations"] == operations(script.LATENTS, script.TOKENS)
    assert found["weight_bytes"] == 2 * 1_208_872_772
    given = 4 * (prod(script.LATENTS) + 2 + 3) + 2 * 2 * 300 * 4096 + 2 * 300
    assert found["peak_bytes"] == found["weight_bytes"] + found["peak_activation_bytes"] + given


def test_the_peak_of_a_chain_is_its_two_largest_neighbours(script: Any):
    x = torch.empty(8, 4, device="meta")
    with script.Alive() as alive:
        y = (x.repeat(1, 3) + 1).view(-1)  # 384 bytes twice, of which the first is let go
        z = y[:16] * 2  # 64 more
        del y
        z.repeat(10)  # 64 and 640
    assert alive.peak == 2 * 384
