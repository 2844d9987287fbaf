"""Rows of the table of combinations: one denoiser on two processes, its sequence or its weights shared out."""

import os
import socket
import sys
import warnings
from typing import Any
from unittest import mock

import diffusers
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from combinations import ROUNDING, Found, distance

RANKS = 2
SITES = ("output", "guided", "hidden")


def context_parallel(pipe: Any) -> None:
    pipe.transformer.enable_parallelism(config=diffusers.ContextParallelConfig(ulysses_degree=RANKS))


def tensor_parallel(pipe: Any) -> None:
    """diffusers shards for accelerators only; what it does there works on a CPU as well."""
    from diffusers.hooks import tensor_parallel as hooks

    with mock.patch.object(hooks, "_SUPPORTED_TP_DEVICES", ("cpu",)):
        pipe.transformer.enable_parallelism(config=diffusers.TensorParallelConfig(tp_degree=RANKS))


WAYS = {
    "context parallelism": (
        "`pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))`", context_parallel,
        "two processes; ring attention has no kernel on a CPU and was not run",
    ),
    "tensor parallelism": (
        "`pipe.transformer.enable_parallelism(config=TensorParallelConfig(tp_degree=2))`", tensor_parallel,
        "two processes; diffusers offers it on accelerators only, and the test lets it run on a CPU",
    ),
}  # fmt: skip


def check_ranks(name: str) -> Found:
    """Two processes that share out the small FLUX, each of which checks itself against the one process it also is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_rank, (name, port), nprocs=RANKS)  # pyright: ignore[reportPrivateImportUsage]
    return Found("FluxPipeline", "works", "works", f"the profile on one process, to {ROUNDING:.0e}")


def _rank(rank: int, name: str, port: int) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "this plan loses")
    warnings.filterwarnings("ignore", ".*all_gather_tensor.* is deprecated", FutureWarning)  # diffusers' own use of it
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    try:
        _compare(WAYS[name][1])
    finally:
        dist.destroy_process_group()


def _compare(on: Any) -> None:
    import ertacache
    import small_token_images as tokens
    from supported import MASK, T, calibrated, generate, watched

    alone, ranked, late = (tokens.flux() for _ in range(3))
    profiles = [calibrated(alone, site) for site in SITES]
    plain = generate(alone)
    with mock.patch.object(torch.accelerator, "device_count", lambda: 1):  # 0 on a CPU, by which diffusers divides
        on(ranked.pipe)
        bare = generate(ranked)
        assert distance(bare, plain) <= ROUNDING
        for profile in profiles:
            with ertacache.apply(alone.pipe, profile):
                expected = generate(alone)
            with watched(ranked.pipe) as watch, ertacache.apply(ranked.pipe, profile) as stats:
                cached = generate(ranked)
            if profile.site != "hidden":  # where the denoiser runs in every step, but for its blocks
                assert [bool(step) for step in watch.steps[:T]] == [mark == "#" for mark in MASK]
            assert (stats.computed, stats.predicted) == ({"cond": 5}, {"cond": 3})
            assert distance(cached, expected) <= ROUNDING
            _same_on_every_rank(cached)
            again = calibrated(ranked, profile.site)
            torch.testing.assert_close(again.predictor.a, profile.predictor.a, rtol=1e-4, atol=1e-5)
        assert torch.equal(generate(ranked), bare)
        with ertacache.apply(late.pipe, profiles[1]):
            on(late.pipe)
            found = generate(late)
        with ertacache.apply(alone.pipe, profiles[1]):
            assert distance(found, generate(alone)) <= ROUNDING


def _same_on_every_rank(tensor: torch.Tensor) -> None:
    gathered = [torch.zeros_like(tensor) for _ in range(RANKS)]
    dist.all_gather(gathered, tensor)
    assert all(torch.equal(other, tensor) for other in gathered)


if __name__ == "__main__":
    print(check_ranks(sys.argv[1]))
