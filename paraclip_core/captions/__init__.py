"""Captions: readers of every source format, cleaning, filters, tokens, and the pipeline that joins them."""
