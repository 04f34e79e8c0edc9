"""Measurements of speed and memory; each module is a command, and `make bench` runs the suite."""
