"""What one forward pass of Open-Sora 1.2's transformer takes at full size: operations and memory, counted on no data.

Run by hand: `python benchmarks/open_sora_size.py`. The model and its arguments lie on the meta device, so that tensors
have shapes and no contents. Attention counts as one kernel, which holds no scores; the workspace of other kernels is
not seen. Rewrites benchmarks/results/open_sora_size.json.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ertacache.evaluation.row_figures import made_with
from ertacache.opensora.transformer import STDiT3Transformer3DModel
from ertacache.runtime.flops import FlopCounter

RESULTS = Path(__file__).parent / "results" / "open_sora_size.json"
#: Both branches of guidance, 480 × 854, 51 frames.
LATENTS, TOKENS, PIXELS, FPS = (2, 4, 15, 60, 106), 300, (480.0, 854.0), 24.0


class OneKernel(TorchFunctionMode):
    """Attention by one fused operation, as every accelerator has it; on meta tensors torch would write it out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **given)
        kernel, mask = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, given["attn_mask"]
        return kernel(given["query"], given["key"], given["value"], attn_mask=mask)[0]


class Alive(TorchDispatchMode):
    """The storages that operations made and that somebody still holds.

    Attributes:
        peak: the most bytes of them at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        known = {part.untyped_storage()._cdata for part in tree_leaves((args, given)) if isinstance(part, Tensor)}
        for part in tree_leaves(result):
            if isinstance(part, Tensor) and (storage := part.untyped_storage())._cdata not in known:
                self._held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return result


def arguments() -> dict[str, Tensor]:
    """Of a forward pass: latents in float32, as the solver has them, and captions in bfloat16."""
    batch = LATENTS[0]
    return {
        "hidden_states": torch.empty(LATENTS),
        "timestep": torch.empty(batch),
        "encoder_hidden_states": torch.empty(batch, TOKENS, 4096, dtype=torch.bfloat16),
        "encoder_attention_mask": torch.empty(batch, TOKENS, dtype=torch.bool),
        **{name: torch.empty(1) for name in ("fps", "height", "width")},
    }


@torch.no_grad()
def measure() -> dict[str, Any]:
    """The figures of one pass with weights in bfloat16."""
    with torch.device("meta"):
        model, call = STDiT3Transformer3DModel().bfloat16().eval(), arguments()
        with OneKernel():
            with FlopCounter() as counter:
                model(**call)
            with Alive() as alive:
                model(**call)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    return {
        "operations": counter.total,
        "weight_bytes": weights,
        "peak_activation_bytes": alive.peak,
        "peak_bytes": weights + alive.peak + sum(tensor.nbytes for tensor in call.values()),
    }


def main() -> None:
    given = {"latents": LATENTS, "tokens": TOKENS, "height": PIXELS[0], "width": PIXELS[1], "dtype": "bfloat16"}
    header = {"command": "python benchmarks/open_sora_size.py", "model": "Open-Sora 1.2", **given, **made_with()}
    RESULTS.write_text(json.dumps({"header": header, **measure()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
