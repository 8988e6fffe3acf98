"""Runs: their definition, and how their stages are executed."""
