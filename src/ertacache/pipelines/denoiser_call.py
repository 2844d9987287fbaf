"""The form in which a denoiser takes the latent and gives its output, and what one run's shapes must be."""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ertacache.errors import UnsupportedPipeline
from ertacache.pipelines.models import family_of, unwrapped

#: Names of the argument that denoisers take the latent by; a positional one comes first.
_LATENT = ("hidden_states", "sample", "x")


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How a denoiser hands over its output, so that a prediction can take its place.

    Attributes:
        kind: `tuple`, or the class of the object with a `sample`.
        listed: whether the output is a list with one tensor for each sample of the batch (Z-Image).
        further: whether tensors besides it come along, which nothing predicts.
        surplus: channels of the output that the pipeline drops, see `Family.surplus`.
    """

    kind: type
    listed: bool = False
    further: bool = False
    surplus: int = 0

    def check(self, denoiser: nn.Module) -> None:
        """Refuse a denoiser that returns further tensors: `UnsupportedPipeline`."""
        if self.further:
            raise UnsupportedPipeline(
                f"{type(unwrapped(denoiser)).__name__} returns several tensors, of which only the first is predicted; "
                "this denoiser cannot be served"
            )

    def wrap(self, value: Tensor, denoiser: nn.Module) -> Any:
        """A tensor [B, *] as the denoiser would have returned it; what the pipeline drops of it is zero.

        Raises:
            UnsupportedPipeline: as `check`.
        """
        self.check(denoiser)
        if self.surplus:
            axis, shape = family_of(denoiser).channel_axis, list(value.shape)
            shape[axis] = self.surplus
            value = torch.cat((value, value.new_zeros(shape)), axis)
        sample = list(value.unbind(0)) if self.listed else value
        return (sample,) if self.kind is tuple else self.kind(sample=sample)


def read_output(output: Any, x: Tensor, denoiser: nn.Module) -> tuple[Tensor, OutputForm]:
    """The tensor [B, *] in what a denoiser returned for the latent `x`, and the form of it.

    Of channels that the pipeline drops (`Family.surplus`) the form holds the number, and the tensor nothing.

    Raises:
        UnsupportedPipeline: as `tensor_of`.
    """
    value, form, family = tensor_of(output, denoiser), form_of(output), family_of(denoiser)
    axis = family.channel_axis
    surplus = value.shape[axis] - x.shape[axis] if family.surplus else 0
    if surplus <= 0:
        return value, form
    return value.narrow(axis, 0, x.shape[axis]), replace(form, surplus=surplus)


def form_of(output: Any) -> OutputForm:
    """The form of what a denoiser returned."""
    if isinstance(output, tuple):
        first, *others = cast("tuple[Any, ...]", output)
        return OutputForm(tuple, isinstance(first, list), any(isinstance(other, Tensor) for other in others))
    listed, kind = isinstance(output.sample, list), type(output)
    others = [field.name for field in fields(output) if field.name != "sample"] if is_dataclass(output) else []
    return OutputForm(kind, listed, any(isinstance(getattr(output, name), Tensor) for name in others))


def form_without(return_dict: bool) -> OutputForm:
    """The form to assume of a denoiser that has not been seen to return anything."""
    if not return_dict:
        return OutputForm(tuple)
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return OutputForm(Transformer2DModelOutput)


def latent_of(args: tuple[Any, ...], kwargs: dict[str, Any], denoiser: nn.Module) -> Tensor:
    """The latent [B, *] that a denoiser is called on, in whatever form; a list of one tensor per sample is stacked.

    Raises:
        UnsupportedPipeline: there is none.
    """
    value = next((kwargs[name] for name in _LATENT if name in kwargs), args[0] if args else None)
    return _stacked(value, denoiser, "was called without a latent tensor")


def tensor_of(output: Any, denoiser: nn.Module) -> Tensor:
    """The tensor [B, *] in what a denoiser returned.

    Raises:
        UnsupportedPipeline: there is none.
    """
    first = cast(Any, output[0] if isinstance(output, tuple) else getattr(output, "sample", None))
    kind = type(cast(object, output)).__name__
    return _stacked(first, denoiser, f"returned {kind}, not a tensor in a tuple or in `.sample`")


def _stacked(value: Any, denoiser: nn.Module, otherwise: str) -> Tensor:
    if isinstance(value, list):
        parts = cast("list[Any]", value)
        if parts and all(isinstance(part, Tensor) for part in parts):
            if len({part.shape for part in parts}) > 1:
                otherwise = f"takes or returns a batch of different sizes {[list(part.shape) for part in parts]}"
            else:
                return torch.stack(parts)
    if not isinstance(value, Tensor):
        raise UnsupportedPipeline(
            f"{type(unwrapped(denoiser)).__name__} {otherwise}; nothing can be predicted for this denoiser"
        )
    return value


def leading(x: Tensor, output: Tensor) -> Tensor:
    """The part of a denoiser's input that its output belongs to.

    Pipelines for images to video and for filling in concatenate conditions after the latent, on any axis but the
    batch.

    Args:
        x: [B, *] the input.
        output: [B, *] of as many axes, none longer than that of `x`.

    Raises:
        UnsupportedPipeline: the output is no part of the input, as where it has the noise's variance besides.
    """
    if x.shape == output.shape:
        return x
    fits = x.ndim == output.ndim and x.shape[0] == output.shape[0]
    if not (fits and all(n <= m for n, m in zip(output.shape, x.shape, strict=True))):
        raise UnsupportedPipeline(
            f"the denoiser's output has shape {list(output.shape)} and its input {list(x.shape)}, so that the residual "
            "v − x is not defined at site 'output' (a learned variance makes more channels); use site='guided', or "
            "basis='reuse'"
        )
    return x[tuple(slice(n) for n in output.shape)]


class Shapes:
    """The shapes of one run, which must stay as they are in its first step."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, int], tuple[int, ...]] = {}

    def check(self, step: int, name: str, tensor: Tensor, branches: int = 1) -> None:
        """Refuse a tensor of another shape than the first of its name with as many branches of guidance in its batch.

        Raises:
            UnsupportedPipeline: as where tokens are dropped, or guidance ends, within the run.
        """
        shape = tuple(tensor.shape)
        first = self._first.setdefault((name, branches), shape)
        if shape != first:
            raise UnsupportedPipeline(
                f"{name} has shape {list(shape)} at step {step} and had {list(first)} before; nothing can be predicted "
                "where the shape changes within a run: take off what drops tokens, or keep guidance on to the end"
            )
