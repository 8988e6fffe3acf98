"""Training of text towers: rows, batches, losses, the loop, checkpoints, and what is chosen afterwards."""
