"""The parts that all trainings share: the loop of steps, optimizers, averaged weights, the watch for divergence."""
