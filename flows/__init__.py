"""What runs, in what order, and where: Prefect flows and the command line."""
