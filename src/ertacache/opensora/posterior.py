"""What an encoder in two stages knows of its latents, where each stage gives a distribution."""

from collections.abc import Callable
from functools import cached_property

from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor


class TwoStagePosterior:
    """The latents of a clip under a spatial encoder, whose latents are drawn, and a temporal one on what was drawn.

    Open-Sora 1.2 samples both. So `sample` draws latents of frames, hands them to the temporal encoder, and draws from
    what that gives; `mode` takes the mean in both places. The temporal encoder therefore runs when one of them is
    called, with the weights, the device and the gradients of that moment. Each stage draws its noise for the whole
    batch at once, spatial first: the values do not depend on slicing or chunks (those of the reference, which draws
    chunk by chunk, are others).

    Args:
        spatial: distribution of the latents of frames, [B, C, frames, h, w].
        temporal: mean and standard deviation of the latents, [B, C, latent frames, h, w], given such latents of frames.
    """

    def __init__(
        self, spatial: DiagonalGaussianDistribution, temporal: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        self._spatial, self._temporal = spatial, temporal

    def sample(self, generator: Generator | list[Generator] | None = None) -> Tensor:
        """Latents drawn through both stages, [B, C, latent frames, h, w]."""
        frames = self._noised(self._spatial.mean, self._spatial.std, generator)
        return self._noised(*self._temporal(frames), generator)

    def mode(self) -> Tensor:
        """Latents by the means of both stages, [B, C, latent frames, h, w]; nothing is drawn."""
        return self.mean

    @property
    def mean(self) -> Tensor:
        """Mean of the temporal stage at the mean of the spatial one."""
        return self._at_mean[0]

    @property
    def std(self) -> Tensor:
        """Standard deviation of the temporal stage at the mean of the spatial one."""
        return self._at_mean[1]

    @property
    def var(self) -> Tensor:
        """Variance of the temporal stage at the mean of the spatial one."""
        return self.std.square()

    @property
    def logvar(self) -> Tensor:
        """Logarithm of `var`."""
        return 2 * self.std.log()

    @cached_property
    def _at_mean(self) -> tuple[Tensor, Tensor]:
        return self._temporal(self._spatial.mean)

    @staticmethod
    def _noised(mean: Tensor, std: Tensor, generator: Generator | list[Generator] | None) -> Tensor:
        return mean + std * randn_tensor(tuple(mean.shape), generator, mean.device, mean.dtype)
