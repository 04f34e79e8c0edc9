"""What every training has: the loop of steps, optimizers, the average of the weights, the watch for divergence."""
