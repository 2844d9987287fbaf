"""TeaCache's signal: what it reads before the blocks run, to tell how far the output will have moved."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ertacache.core.precision import widen
from ertacache.errors import CacheConflict, UnsupportedPipeline
from ertacache.pipelines.overrides import Overrides
from ertacache.runtime.run import Controller, Run

#: Reads an argument of the first block by its name.
Read = Callable[[str], Any]


def distance(new: Tensor, previous: Tensor) -> float:
    """TeaCache's relative L1 distance, ‖new − previous‖₁ / ‖previous‖₁, over the whole batch.

    Args:
        new, previous: [B, *] of one shape. Computed in float32; the published code uses the model's own dtype.

    Returns:
        Dimensionless; NaN or infinity where `previous` is zero.
    """
    new, previous = widen(new), widen(previous)
    return float((new - previous).abs().mean() / previous.abs().mean())


def _modulated_tokens(block: nn.Module, read: Read) -> Tensor:
    """FLUX: the image tokens [B, N, D] as the first block's norm1 scales and shifts them."""
    # Part by part: a call of norm1 itself would count as a block that ran.
    norm: Any = block.norm1
    shift, scale = norm.linear(F.silu(read("temb"))).chunk(6, dim=1)[:2]
    return norm.norm(read("hidden_states")) * (1 + scale[:, None]) + shift[:, None]


def _modulated_frames(block: nn.Module, read: Read) -> Tensor:
    """Open-Sora: the tokens [B, T, S, C] as the first spatial block shifts and scales them."""
    hidden, temb = read("hidden_states"), read("temb")
    first: Any = block
    shift, scale = (first.scale_shift_table[:2].to(temb.dtype) + temb[:, :, :2]).unsqueeze(3).unbind(2)
    # Not by norm1 itself, as above.
    normed = F.layer_norm(hidden, hidden.shape[-1:], eps=first.norm1.eps)
    return normed.unflatten(1, (read("num_frames"), -1)) * (1 + scale) + shift


def _time_embedding(block: nn.Module, read: Read) -> Tensor:
    """CogVideoX: the time embedding [B, D]. Wan: its six-way projection [B, 6, D]."""
    return read("temb")


#: Denoiser class -> its signal.
SIGNALS: dict[str, Callable[[nn.Module, Read], Tensor]] = {
    "FluxTransformer2DModel": _modulated_tokens,
    "WanTransformer3DModel": _time_embedding,
    "CogVideoXTransformer3DModel": _time_embedding,
    "STDiT3Transformer3DModel": _modulated_frames,
}
#: Denoiser classes whose blocks are not given the time embedding but its projection, which `ret_steps` reads.
PROJECTED = ("WanTransformer3DModel",)


def refusal(denoiser: str, projection: bool) -> str | None:
    """Why the signal of a denoiser class cannot be read; None where it can."""
    if denoiser not in SIGNALS:
        return f"its signal is not known for {denoiser}"
    if projection and denoiser not in PROJECTED:
        return f"ret_steps is not defined for {denoiser}"
    return None


class SignalController(Controller):
    """Reads the signal in every call and lets `entered` say whether a residual takes the place of the blocks.

    Args:
        projection: read the projection of the time embedding instead of the embedding.
    """

    several = False

    def __init__(self, projection: bool) -> None:
        self._projection = projection
        self._read_embedder = False
        self._embedding: Tensor | None = None

    def entered(self, run: Run, context: str, signal: Tensor) -> Tensor | None:
        """Before the blocks of a call: a residual [B, N, D] to take their place, or None to run them."""
        return None

    def computed(self, context: str, residual: Tensor, output: Tensor) -> None:
        """After a call that ran the blocks: what they added, and the denoiser's output."""

    def reset(self) -> None:
        """Before and after every run: drop what belongs to it."""
        self._embedding = None

    def install(self, overrides: Overrides, denoiser: nn.Module) -> None:
        name = type(denoiser).__name__
        if reason := refusal(name, self._projection):
            remedy = f"leave it off, or use one of {', '.join(PROJECTED if name in SIGNALS else SIGNALS)}"
            raise UnsupportedPipeline(f"TeaCache cannot run here: {reason}; {remedy}")
        self._source = SIGNALS[name]
        if name not in PROJECTED or self._projection:
            return
        self._read_embedder = True
        embedder: Any = denoiser.condition_embedder
        overrides.replace_part(embedder, self._embedded)

    def _embedded(self, original: Callable[..., Any], _: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        self._embedding = result[0]
        return result

    def begin(self, run: Run) -> None:
        self.reset()
        if run.stack is not None:
            run.stack.on_entry = self._entry

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        stack = run.stack
        if stack is None:
            raise CacheConflict("TeaCache ran without the block stack; attach it with hidden=True")
        self._call, self._asked, self._reused, self._embedding = (run, context), False, False, None
        output = compute()
        if not self._asked:
            raise stack.bypassed()
        if not self._reused:
            self.computed(context, stack.take_residual(), output)
        return output

    def end_step(self, run: Run, x_next: Tensor) -> None:
        if run.step == run.T - 1:
            self.reset()  # the decoder may need the room

    def _entry(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        from diffusers.hooks._helpers import TransformerBlockRegistry

        row: Any = TransformerBlockRegistry.get(type(block))
        self._asked = True
        if not self._read_embedder:
            signal = self._source(block, lambda name: row._get_parameter_from_args_kwargs(name, args, kwargs))
        elif self._embedding is not None:
            signal = self._embedding
        else:
            raise CacheConflict(
                "the time embedding was made without passing by TeaCache; take it off, finish changing the denoiser "
                "(compile, offload), then apply it again"
            )
        residual = self.entered(*self._call, signal)
        self._reused = residual is not None
        return residual
