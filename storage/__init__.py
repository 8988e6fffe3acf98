"""What is kept on disk: artifacts, Parquet files, the generation cache, image features."""
