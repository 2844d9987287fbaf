"""FasterCache's CFG-cache: the unconditional output rebuilt from the conditional one of the same step."""

import torch
from torch import Tensor


def split_frequencies(x: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high spatial frequencies, whose sum is `x`.

    Low is everything within a circle of radius ⌊min(H, W) / 5⌋ around frequency zero, in cycles per image.

    Args:
        x: [..., H, W], float32.
    """
    height, width = x.shape[-2:]
    rows = torch.fft.fftfreq(height, d=1 / height, device=x.device)[:, None]
    columns = torch.fft.fftfreq(width, d=1 / width, device=x.device)
    # Half a unit of slack: squares of whole numbers, which fftfreq gives up to rounding.
    inside = rows**2 + columns**2 < (min(height, width) // 5) ** 2 + 0.5
    low = torch.fft.ifft2(torch.fft.fft2(x) * inside).real
    return low, x - low


class BranchDifference:
    """u − c of the last step that computed both branches, low and high spatial frequencies apart."""

    def __init__(self) -> None:
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    def clear(self) -> None:
        """Forget it."""
        self._low = self._high = None

    def keep(self, uncond: Tensor, cond: Tensor) -> None:
        """Take the difference of two outputs [..., H, W] of one step."""
        self._low, self._high = split_frequencies(uncond.float() - cond.float())

    def rebuild(self, cond: Tensor, low: float, high: float) -> Tensor | None:
        """u = c + Δ_low + Δ_high (Eq. 9-11); None before `keep`.

        The factors stay in the stored differences, so they compound until the next `keep`, as they do in the
        authors' code and in diffusers.

        Args:
            cond: output [..., H, W] of this step.
            low, high: factors of the stored differences in this step.
        """
        if self._low is None or self._high is None:
            return None
        self._low, self._high = self._low * low, self._high * high
        return (cond.float() + self._low + self._high).to(cond.dtype)
