"""Evaluation: benchmarks in their published formats, metrics, and the comparison of two models with a verdict."""
