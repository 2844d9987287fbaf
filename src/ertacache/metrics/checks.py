"""What every metric asks of its images, refused in one wording.

Integer images are refused rather than converted: on 8-bit images `a - b` and its square wrap modulo 256, which
lifts the PSNR of a bad pair by many dB without any error.
"""

import torch
from torch import Tensor

from ertacache.errors import InvalidArgument


def checked_pair(image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches [B, 3, H, W] of one dtype, at least float32.

    Raises:
        InvalidArgument: unequal shapes, another shape, integers, NaN or values outside [0, 1].
    """
    if image.shape != reference.shape:
        raise InvalidArgument(
            f"image has shape {tuple(image.shape)} and reference {tuple(reference.shape)}; "
            "pass two batches of equal shape [B, 3, H, W]"
        )
    image, reference = checked_images(image), checked_images(reference, "reference")
    dtype = torch.promote_types(image.dtype, reference.dtype)
    return image.to(dtype), reference.to(dtype)


def checked_images(images: Tensor, name: str = "image") -> Tensor:
    """One batch [B, 3, H, W], half precision widened to float32.

    Raises:
        InvalidArgument: another shape, integers, NaN or values outside [0, 1].
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise InvalidArgument(
            f"images have shape {tuple(images.shape)}; pass [B, 3, H, W] (one image: image[None]; "
            "channels last: image.movedim(-1, -3))"
        )
    if not images.is_floating_point():
        raise InvalidArgument(
            f"{name} has dtype {images.dtype}, whose differences wrap or truncate; pass {name}.float()/255"
        )
    low, high = (float(bound) for bound in images.aminmax())
    if low != low or high != high:  # aminmax propagates NaN
        raise InvalidArgument(f"{name} contains NaN; look for an overflow in the decoder, e.g. decode in float32")
    if low < 0.0 or high > 1.0:
        raise InvalidArgument(
            f"{name} has values from {low:g} to {high:g}, outside [0, 1]; "
            f"rescale it ({name}/2 + 0.5 from [-1, 1], {name}/255 from 8 bit), then clamp(0, 1)"
        )
    return images.to(torch.promote_types(images.dtype, torch.float32))


def eight_bit(images: Tensor) -> Tensor:
    """uint8 on the CPU, rounded as a picture file is: what networks trained on picture files are given."""
    return (images * 255).round().to(torch.uint8).cpu()
