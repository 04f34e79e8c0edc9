"""From a trained model to images."""
