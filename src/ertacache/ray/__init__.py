"""On Ray: batches of pictures and clips from a dataset, and calibrations and comparisons spread over GPUs.

import ertacache.ray

made = ertacache.ray.generate(dataset, "black-forest-labs/FLUX.1-dev", "flux.safetensors", concurrency=8)
profile = ertacache.calibrate(pipe, prompts, speedup=2.0, map=ertacache.ray.map(num_gpus=1))
"""

from ertacache.ray.actors import map
from ertacache.ray.dataset import generate

__all__ = ["generate", "map"]
