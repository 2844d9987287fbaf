"""Small trained models in the diffusers folder format, with their data generator, trainer and caption check."""
