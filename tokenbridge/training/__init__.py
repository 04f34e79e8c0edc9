"""Training of the autoregressive model, on one process or many."""
