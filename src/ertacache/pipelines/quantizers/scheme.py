"""Quantisation schemes by name, as one row of data each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ertacache.core.group_rounding import check_rounding
from ertacache.errors import InvalidArgument, meant
from ertacache.extras import require

#: Entries along the input axis that share a scale: SVDQuant's for int4, and TCEC's.
GROUP = 64
_BITS = re.compile(r"w(\d{1,2})a(\d{1,2})(?:x(\d{1,2}))?", re.ASCII)
#: Grids that the steps of a run may share; weights are rounded to one of them in each call.
_GRIDS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class _TorchAo:
    """One of torchao's configurations.

    Attributes:
        config: its class in `torchao.quantization`.
        grouped: its argument for the groups in which weights of 4 bits share a scale, whose length has to divide a
            layer's inputs; empty where they do not.
        capability: the least compute capability of a CUDA device that runs it; None where a CPU does.
    """

    config: str
    grouped: str = ""
    capability: tuple[int, int] | None = None


_TORCHAO: Mapping[str, _TorchAo] = {
    "int8wo": _TorchAo("Int8WeightOnlyConfig"),
    "int8dq": _TorchAo("Int8DynamicActivationInt8WeightConfig"),
    "fp8wo": _TorchAo("Float8WeightOnlyConfig"),
    "fp8dq": _TorchAo("Float8DynamicActivationFloat8WeightConfig", capability=(8, 9)),
    "int4wo": _TorchAo("IntxWeightOnlyConfig", grouped="granularity"),
    "int4dq": _TorchAo("Int8DynamicActivationIntxWeightConfig", grouped="weight_granularity"),
}
#: In the words of the command line.
SCHEMES = ("w4a4", "w4a8", "w8a8", "w4a16", "w8a16", "w16a16", "w4a4x4", "w4a8x4", *_TORCHAO)


@dataclass(frozen=True, slots=True)
class Scheme:
    """What weights and activations are rounded to.

    Attributes:
        name: w4a4 and its like (4 bits for weights, 4 for activations, in this package's own arithmetic; w4a4x2 with
            two grids that steps choose between), or one of torchao's: int8wo, int8dq, fp8wo, fp8dq, int4wo, int4dq
            ("wo" weights only, "dq" activations too, each as it comes).
        bits: of weights and activations, 16 for not rounded; None for torchao's.
        grids: that the steps of a run share, see `grids`.
    """

    name: str
    bits: tuple[int, int] | None
    grids: int = 1

    @classmethod
    def parse(cls, text: str) -> "Scheme":
        """From its name, in letters of either size.

        Raises:
            InvalidArgument: another name.
        """
        name = text.lower() if isinstance(text, str) else ""  # pyright: ignore[reportUnnecessaryIsInstance]
        if name in _TORCHAO:
            return cls(name, None)
        found = _BITS.fullmatch(name)
        if found is None:
            known = f"; there are {', '.join(SCHEMES)}, and others of 2 to 8 bits"
            raise InvalidArgument(f"no scheme {text!r}{meant(name, SCHEMES) or known}")
        bits = int(found[1]), int(found[2])
        for one in bits:
            check_rounding(one, 1)
        grids = int(found[3] or 1)
        if grids not in _GRIDS:
            raise InvalidArgument(f"scheme {text!r} has {grids} grids; use x2, x4 or x8, or leave it out for one")
        return cls(f"w{bits[0]}a{bits[1]}" + (f"x{grids}" if grids > 1 else ""), bits, grids)

    @property
    def stored(self) -> bool:
        """Whether a saved model holds its rounded weights, and is not quantised again at every load."""
        return self.bits is not None and self.grids == 1

    def __str__(self) -> str:
        return self.name

    def check_here(self) -> None:
        """Refuse a scheme that cannot be computed on this machine.

        Raises:
            MissingExtra: torchao is not installed.
            InvalidArgument: it needs another device.
        """
        if self.bits is not None:
            return
        require(f"the scheme {self.name!r}", "torchao")
        import torch

        least = _TORCHAO[self.name].capability
        if least is not None and not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= least):
            raise InvalidArgument(
                f"the scheme {self.name!r} needs a CUDA device of compute capability {least[0]}.{least[1]}; use fp8wo "
                "or int8dq"
            )

    def divides(self, inputs: int, group: int) -> bool:
        """Whether a layer with so many inputs can be rounded in such groups."""
        return self.bits is not None or not _TORCHAO[self.name].grouped or inputs % group == 0

    def torchao_config(self, group: int) -> Any:
        """The configuration object for `torchao.quantization.quantize_`."""
        row, options = _TORCHAO[self.name], dict[str, Any]()
        if row.grouped:
            import torch

            options = {"weight_dtype": vars(torch)["int4"], row.grouped: torchao().PerGroup(group)}
        else:  # what it would set for the whole process is a matter of the caller's compiler
            options = {"set_inductor_config": False}
        return getattr(torchao(), row.config)(**options)


def torchao() -> Any:
    """`torchao.quantization`, which takes its time to be imported and is an extra."""
    return import_module("torchao.quantization")
