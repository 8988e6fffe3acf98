"""Stages and the Prefect tasks around them: resolve configuration, call the core with storage, publish."""
