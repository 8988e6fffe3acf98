"""The knowledge of paraclip, importable without Prefect."""
