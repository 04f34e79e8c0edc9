"""The small classifier of real images that measures class accuracy, and its training."""
