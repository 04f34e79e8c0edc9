"""Executions of the pipeline: one, a recorded one again, many of them."""
