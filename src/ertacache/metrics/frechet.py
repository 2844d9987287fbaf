"""Fréchet distance between two sets of images (FID, Heusel et al. 2017), over any network's features."""

import warnings
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ertacache.errors import InvalidArgument, MissingExtra
from ertacache.metrics.checks import checked_images, eight_bit

INCEPTION = "inception-2015-12-05.pt"
ADDRESS = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION}"
_PICTURES = {".png", ".jpg", ".jpeg"}


class Inception(nn.Module):
    """The Inception-v3 that the StyleGAN and EDM lines measure FID with: uint8 [B, 3, H, W] to [B, 2048].

    It resizes by itself. Figures taken with another Inception do not compare.

    Args:
        path: the TorchScript file `inception-2015-12-05.pt`.

    Raises:
        MissingExtra: no such file.
        InvalidArgument: a file that is no TorchScript.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise MissingExtra(f"no Inception at {path}; download {INCEPTION} from {ADDRESS} and pass its path")
        try:
            # torch advises against new TorchScript; this network is published as nothing else.
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                network: Any = torch.jit.load(path, map_location="cpu")
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise InvalidArgument(f"{path} is no TorchScript ({first}); download {ADDRESS} again") from error
        self.network = network.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Features of the last pooling layer."""
        return self.network(images, return_features=True)


@dataclass
class _Moments:
    """Sums over the features of one set: N, Σ f and Σ f fᵀ, in float64."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    products: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def add(self, other: "_Moments") -> None:
        if other.count == 0:
            return
        self.total = self.total + other.total if self.count else other.total.clone()
        self.products = self.products + other.products if self.count else other.products.clone()
        self.count += other.count

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        mean = self.total / self.count
        return mean, (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)


class FrechetDistance:
    """|μ − μ₀|² + tr(Σ + Σ₀ − 2 (Σ Σ₀)^½) between the features of generated and of reference images.

        fid = FrechetDistance(Inception("inception-2015-12-05.pt"))
        for images in read_pictures("references"):
            fid.update(images, reference=True)
        ...
        fid.compute()

    It keeps two sums per set, never an image. With fewer images than features the covariances are singular and the
    value is biased upwards: compare only values over equal numbers of images.

    Args:
        features: takes uint8 images [B, 3, H, W] and gives [B, D]; put into evaluation mode.
        device: where it runs.
    """

    def __init__(self, features: nn.Module, *, device: str = "cpu") -> None:
        self._features = features.to(device).eval()
        self._device = torch.device(device)
        self._generated, self._reference = _Moments(), _Moments()

    @torch.no_grad()
    def update(self, images: Tensor, *, reference: bool) -> None:
        """Add images to one of the two sets.

        Args:
            images: [B, 3, H, W] float in [0, 1]; rounded to 8 bit for the network.
            reference: to the reference set, or else to the generated one.

        Raises:
            InvalidArgument: images as refused by `psnr`, or features that are no [B, D].
        """
        features: Tensor = self._features(eight_bit(checked_images(images)).to(self._device))
        if features.ndim != 2 or len(features) != len(images):
            raise InvalidArgument(
                f"the network gives features of shape {tuple(features.shape)} for {len(images)} image(s); "
                "pass one that gives [B, D]"
            )
        features = features.double().cpu()
        moments = _Moments(len(features), features.sum(0), features.T @ features)
        self._add(*((_Moments(), moments) if reference else (moments, _Moments())))

    def _add(self, generated: _Moments, reference: _Moments) -> None:
        parts = (self._generated, self._reference, generated, reference)
        # Checked for both sets before either is touched.
        if len(widths := {len(part.total) for part in parts if part.count}) > 1:
            raise InvalidArgument(f"{sorted(widths)} features per image; use one network for all images")
        self._generated.add(generated)
        self._reference.add(reference)

    def state(self) -> dict[str, dict[str, Any]]:
        """The sums of both sets: `count`, `total` [D] and `products` [D, D], float64."""
        sets = {"generated": self._generated, "reference": self._reference}
        return {
            name: {"count": part.count, "total": part.total.clone(), "products": part.products.clone()}
            for name, part in sets.items()
        }

    def merge(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the sums of another rank's `state`. Raises `InvalidArgument` for another number of features."""
        self._add(_Moments(**state["generated"]), _Moments(**state["reference"]))

    def compute(self) -> float:
        """The distance.

        Raises:
            InvalidArgument: fewer than two images in a set.
        """
        counts = self._generated.count, self._reference.count
        if min(counts) < 2:
            raise InvalidArgument(
                f"{counts[0]} generated and {counts[1]} reference image(s); a covariance needs at least 2 of each"
            )
        mean, covariance = self._generated.mean_and_covariance()
        mean_0, covariance_0 = self._reference.mean_and_covariance()
        # tr (Σ Σ₀)^½ = tr (Σ^½ Σ₀ Σ^½)^½: symmetric, so singular covariances give no complex eigenvalues.
        values, vectors = torch.linalg.eigh(covariance)
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        cross = torch.linalg.eigvalsh(root @ covariance_0 @ root).clamp(min=0).sqrt().sum()
        return float((mean - mean_0).square().sum() + covariance.trace() + covariance_0.trace() - 2 * cross)


def read_pictures(folder: str | Path, batch_size: int = 32) -> Generator[Tensor]:
    """The png and jpg files of a folder by name, as batches [B, 3, H, W] float32 in [0, 1], B <= `batch_size`.

    A batch also ends where the size of the pictures changes.

    Raises:
        InvalidArgument: no such folder, no pictures in it, or one that PIL cannot read.
    """
    from PIL import Image

    paths = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in _PICTURES)
    if not paths:
        raise InvalidArgument(f"{folder} holds no png or jpg files; give a folder of pictures")
    batch: list[Tensor] = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                pixels = torch.from_numpy(np.array(picture.convert("RGB"))).movedim(-1, 0)
        except OSError as error:
            raise InvalidArgument(f"cannot read the picture {path} ({error}); mend or remove it") from error
        if batch and (len(batch) == batch_size or pixels.shape != batch[0].shape):
            yield torch.stack(batch).float() / 255
            batch = []
        batch.append(pixels)
    yield torch.stack(batch).float() / 255
