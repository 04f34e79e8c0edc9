"""The cost of a training, from the settings alone: arithmetic, memory, bytes, hours and money.

No module here allocates weights: models are built on the meta device to count parameters.
"""
