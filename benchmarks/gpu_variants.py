"""Ways in which people run a pipeline: as it is, compiled, with CUDA graphs, with weights that wait elsewhere or are
quantised."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpu_build import Built, gib

from ertacache.errors import InvalidArgument, MissingExtra
from ertacache.pipelines.quantizers.quantize import quantize
from ertacache.pipelines.quantizers.scheme import Scheme


@dataclass(frozen=True)
class Variant:
    """One way.

    Attributes:
        prepare: changes the pipeline for good, and returns what has to be said about it.
        seconds: that this and the first run take beyond the steps at full size, roughly.
        needs_cuda: whether it means nothing on the CPU.
        needs_host: whether the weights have to fit into the host's memory.
        scheme: by which it is quantised, empty for none; it is then run with and without a correction, not with plans.
    """

    name: str
    prepare: Callable[[Built], str]
    seconds: float = 0.0
    needs_cuda: bool = False
    needs_host: bool = False
    scheme: str = ""

    def refusal(self, built: Built, host: int) -> str | None:
        """Why it cannot be measured; None where it can.

        Args:
            host: free bytes of the host's memory.
        """
        if self.needs_cuda and built.device.type != "cuda":
            return "needs CUDA"
        if self.scheme:
            try:
                Scheme.parse(self.scheme).check_here()
            except (InvalidArgument, MissingExtra) as error:
                return str(error)
        # Once where they wait, and once more while they are pinned.
        if self.needs_host and 2 * built.weights > host:
            return f"its weights need {gib(2 * built.weights)} of the host's memory, and {gib(host)} are free"
        return None


def _eager(built: Built) -> str:
    return ""


def _compiled(built: Built) -> str:
    backend, note = _backend(built)
    try:
        built.pipe.transformer.compile_repeated_blocks(backend=backend)
    except ValueError as error:
        built.pipe.transformer.compile(backend=backend)
        reason = str(error).partition(". ")[0].strip().rstrip(".")
        return "; ".join(filter(None, [f"the whole denoiser is compiled: {reason}", note]))
    return note


def _graphs(built: Built) -> str:
    """The whole denoiser in one graph; its outputs are copied, since the second branch would overwrite the first's."""
    compiled: Any = torch.compile(built.pipe.transformer, mode="reduce-overhead")
    compiled.register_forward_hook(_copied)
    built.pipe.transformer = compiled
    return "mode='reduce-overhead', outputs copied"


def _copied(module: Any, args: Any, output: Any) -> Any:
    return tuple(part.clone() for part in output)


def _group_offload(built: Built) -> str:
    stream = built.device.type == "cuda"
    built.pipe.enable_group_offload(onload_device=built.device, offload_type="leaf_level", use_stream=stream)
    return "leaf level" + (", with a stream" if stream else "")


def _model_offload(built: Built) -> str:
    built.pipe.enable_model_cpu_offload(device=built.device)
    return "the weights come to the device within the first step"


def _quantised(scheme: str, built: Built) -> str:
    quantize(built.pipe, scheme)  # what undoes it would keep the original weights, and is dropped
    return ""


def _backend(built: Built) -> tuple[str, str]:
    """The compiler's backend, and what has to be said about it."""
    if built.device.type == "cuda":
        return "inductor", ""
    return "eager", "backend 'eager' makes no kernels"


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("eager", _eager),
        Variant("compiled", _compiled, seconds=40),
        Variant("CUDA graphs", _graphs, seconds=120, needs_cuda=True),
        Variant("group offload", _group_offload, seconds=40, needs_host=True),
        Variant("model offload", _model_offload, seconds=30, needs_cuda=True, needs_host=True),
        Variant("int8dq", partial(_quantised, "int8dq"), seconds=30, scheme="int8dq"),
        Variant("fp8wo", partial(_quantised, "fp8wo"), seconds=30, scheme="fp8wo"),
    )
}
