"""The demo's data set: rendered scenes with web-style captions and held-out rewordings."""
