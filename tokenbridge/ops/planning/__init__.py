"""What a training costs, from the settings alone: arithmetic, memory, bytes, hours and money.

No module here computes with tensors that hold anything: models are built on the meta device to count parameters.
"""
