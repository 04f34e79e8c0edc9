"""How good generated and reconstructed images are, measured on features nobody here trained on."""

from tokenbridge.base.errors import UserError


class EvaluationError(UserError):
    """An evaluation that cannot give a comparable number; the message says why and what to change."""
