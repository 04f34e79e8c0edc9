"""Sampling: from a trained model to images."""
