"""Training of text encoders: rows, batches, losses, the loop, checkpoints, and what is chosen afterwards."""
