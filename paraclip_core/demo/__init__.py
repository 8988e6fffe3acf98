"""What only the demo needs: its scenes, and the small language model with its word lists and filters."""
