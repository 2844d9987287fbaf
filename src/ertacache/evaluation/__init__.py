"""Measuring: comparisons at equal cost, the ablation, reports, the paper's tables, VBench."""
