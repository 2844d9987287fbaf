"""AlexNet's convolutions with random weights, under the names of torchvision's file."""

from pathlib import Path

import torch
from torch import Tensor, nn


def state(seed: int = 0) -> dict[str, Tensor]:
    """Weights of usual size, the classifier's first bias among them: the file holds more than the trunk."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {"classifier.1.bias": torch.zeros(4096)}
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    for place, (out, into, size) in shapes.items():
        scale = (2 / (into * size**2)) ** 0.5
        weights[f"features.{place}.weight"] = scale * torch.randn(out, into, size, size, generator=generator)
        weights[f"features.{place}.bias"] = 0.1 * torch.randn(out, generator=generator)
    return weights


def saved(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state(seed), path)
    return path


def features(seed: int = 0) -> nn.Sequential:
    """As torchvision's `alexnet().features`."""
    relu, pool = nn.ReLU, nn.MaxPool2d
    sequence = nn.Sequential(
        *(nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2), relu(), pool(kernel_size=3, stride=2)),
        *(nn.Conv2d(64, 192, kernel_size=5, padding=2), relu(), pool(kernel_size=3, stride=2)),
        *(nn.Conv2d(192, 384, kernel_size=3, padding=1), relu()),
        *(nn.Conv2d(384, 256, kernel_size=3, padding=1), relu()),
        *(nn.Conv2d(256, 256, kernel_size=3, padding=1), relu(), pool(kernel_size=3, stride=2)),
    )
    prefix = "features."
    sequence.load_state_dict({k.removeprefix(prefix): v for k, v in state(seed).items() if k.startswith(prefix)})
    return sequence
