"""Training of text encoders: rows, batches, losses, the loop, checkpoints and the choice of α."""
