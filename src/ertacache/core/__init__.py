"""The mathematics of step caching: pure functions and frozen dataclasses on torch tensors."""
