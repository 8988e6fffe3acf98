"""The core library of paraclip, importable without Prefect."""
