"""What is kept on disk: artifacts, Parquet files, the answers cache, image features."""
