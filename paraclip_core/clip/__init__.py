"""CLIP models: loading, freezing, encoding, saving."""
