"""Small trained models in the diffusers folder format, with their data generator, trainer and caption check."""

__version__ = "0.1.0"
