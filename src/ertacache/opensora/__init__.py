"""Open-Sora 1.2 for inference, in the way of diffusers: transformer, autoencoder and pipeline."""

from ertacache.opensora.autoencoder import AutoencoderKLOpenSora
from ertacache.opensora.pipeline import OpenSoraPipeline
from ertacache.opensora.transformer import STDiT3Transformer3DModel

__all__ = ["AutoencoderKLOpenSora", "OpenSoraPipeline", "STDiT3Transformer3DModel"]
