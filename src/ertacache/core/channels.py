"""Where a batch of latents has its channels."""

from torch import Tensor

from ertacache.errors import InvalidArgument


def channels_at(x: Tensor, channel_axis: int) -> int:
    """The axis of the channels of x [B, *latent], counted from the front.

    Args:
        channel_axis: batch included; may be negative.

    Raises:
        InvalidArgument: an axis that the latent lacks.
    """
    axis = channel_axis + x.ndim if channel_axis < 0 else channel_axis
    if not 0 < axis < x.ndim:
        raise InvalidArgument(
            f"channel_axis={channel_axis} is no axis of a latent {tuple(x.shape)}; "
            f"use 1 to {x.ndim - 1}, the batch being axis 0"
        )
    return axis
