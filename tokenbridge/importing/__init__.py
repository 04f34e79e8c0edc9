"""Weights that others released, as folders of ours: ``tokenbridge import``."""
