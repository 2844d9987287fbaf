"""LPIPS with AlexNet, version 0.1 (Zhang et al., CVPR 2018), in torch alone.

The trunk's weights are torchvision's file, the five linear heads ship inside torchmetrics.
"""

import os
import pickle
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ertacache.errors import InvalidArgument, MissingExtra
from ertacache.metrics.checks import checked_pair

ENVIRONMENT = "ERTACACHE_ALEXNET"
FILE_NAME = "alexnet-owt-7be5be79.pth"
SOURCE = "torchvision's alexnet(weights='IMAGENET1K_V1')"
LPIPS_SMALLEST = 32

_TAPS = (1, 4, 7, 9, 11)  # the five ReLUs, by their place in torchvision's `features`
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, for [-1, 1]
_EPSILON = 1e-10


def alexnet_path(weights: str | Path | None = None) -> Path:
    """The file of the trunk: `weights`, else the variable ERTACACHE_ALEXNET, else torch's hub cache.

    Raises:
        MissingExtra: no such file; a place that is named but empty is not passed over for the next one.
    """
    variable = os.environ.get(ENVIRONMENT)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME
    if weights:
        path, looked = Path(weights), f"the path given: {weights}"
    elif variable:
        path, looked = Path(variable), f"no path given, {ENVIRONMENT}: {variable}"
    else:
        path, looked = cached, f"no path given, {ENVIRONMENT} not set, torch's hub cache: {cached}"
    if not path.is_file():
        raise MissingExtra(
            f"LPIPS has no AlexNet weights ({looked}); download {FILE_NAME}, the file of "
            f"{SOURCE}, and pass its path, set {ENVIRONMENT} to it, or put it at {cached}"
        )
    return path


class Lpips(nn.Module):
    """Learned perceptual distance of image pairs: 0 for equal images, larger is further.

    Args:
        weights: file of the trunk; see `alexnet_path`.
        spatial: the two reductions that are in use. False: each layer's map is averaged over its own pixels, as
            LPIPS papers and torchmetrics do. True: the maps are upsampled to the image and averaged there, as the
            `common_metrics` of the video papers do. Upsampling weights the pixels of a layer nearly alike, so the
            two differ by less than 3% of the value, from 480 pixels on by less than 0.6%.

    Raises:
        MissingExtra: no trunk weights.
        InvalidArgument: a file that is not AlexNet's.
    """

    def __init__(self, weights: str | Path | None = None, *, spatial: bool = False) -> None:
        super().__init__()
        self.spatial = spatial
        self.features = _trunk()
        self._load(alexnet_path(weights))
        # Saved on a GPU, hence the map_location.
        with (files("torchmetrics") / "functional/image/lpips_models/alex.pth").open("rb") as file:
            heads = torch.load(file, map_location="cpu", weights_only=True)
        for layer in range(len(_TAPS)):
            self.register_buffer(f"head{layer}", heads[f"lin{layer}.model.1.weight"])
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def _load(self, path: Path) -> None:
        try:
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
            own = {name: state[f"features.{name}"] for name in self.features.state_dict()}
            self.features.load_state_dict(own)
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InvalidArgument(
                f"{path} does not hold AlexNet's weights ({first}); download {FILE_NAME} of {SOURCE} again"
            ) from error

    @torch.no_grad()
    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Distance of each pair.

        Args:
            image: [B, 3, H, W] float in [0, 1], H and W >= 32; scaled to [-1, 1] here.
            reference: of the same shape.

        Returns:
            [B] float32 on the device of the weights: Σ_layers mean_pixels Σ_c w_c (f̂_c − f̂⁰_c)², f̂ of unit length
            over the channels.

        Raises:
            InvalidArgument: as `psnr`, and for smaller images.
        """
        pair = checked_pair(image, reference)
        size = image.shape[-2:]
        if min(size) < LPIPS_SMALLEST:
            raise InvalidArgument(
                f"images of {size[0]} x {size[1]} pixels are pooled away inside AlexNet; compare images of at least "
                f"{LPIPS_SMALLEST} x {LPIPS_SMALLEST} by LPIPS"
            )
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        x = (2 * torch.cat(pair).to(shift) - 1 - shift) / scale
        total = torch.zeros(len(image), device=shift.device)
        for index, module in enumerate(self.features):
            x = module(x)
            if index in _TAPS:
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + _EPSILON)
                a, b = unit.chunk(2)
                distance = F.conv2d((a - b).square(), self.get_buffer(f"head{_TAPS.index(index)}"))
                if self.spatial:
                    distance = F.interpolate(distance, size, mode="bilinear", align_corners=False)
                total += distance.mean((1, 2, 3))
        return total


def _trunk() -> nn.Sequential:
    """The convolutions of torchvision's AlexNet, numbered as there, up to the last ReLU."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )
