"""The cost of a training, from the settings alone: operations, memory, bytes, hours and money.

No module here allocates weights: models are built and measured on the meta device.
"""
