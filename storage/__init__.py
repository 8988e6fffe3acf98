"""Where things are kept: artifacts, Parquet files, the generation cache, image features."""
