"""The stages, one file each; none of them knows Prefect."""
