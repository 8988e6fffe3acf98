"""Captions: readers for every source format, cleaning, filters, tokens, and the pipeline that connects them."""
