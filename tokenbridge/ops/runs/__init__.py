"""Executions of the pipeline: a single one, a recorded one reproduced, and tables of experiments."""
