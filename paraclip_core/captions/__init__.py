"""Captions: readers for every source format, cleaning, filters, and the pipeline that connects them."""
