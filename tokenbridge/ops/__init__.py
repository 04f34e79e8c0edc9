"""What is done with runs and models."""
