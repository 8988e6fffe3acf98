"""The report: a self-contained page about a run."""
