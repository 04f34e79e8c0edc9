"""Evaluation: the quality of generated and reconstructed images, by features of networks that others trained."""

from tokenbridge.base.errors import UserError


class EvaluationError(UserError):
    """An evaluation that cannot give a comparable number. The message says why, and what to change."""
