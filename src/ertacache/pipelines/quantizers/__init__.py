"""Quantised denoisers: which layers, on which grids, and how a saved one is known again."""
