"""The registry's champion is earned: measured beside the one before, on the same data, seeds and extractor.

- ``registration``: which models a pipeline run leaves to be registered, and with what facts.
- ``measurement``: samples, features and figures of one version, kept under ``.work/promotion``.
- ``comparison``: intervals of the difference of two versions; tensors only.
- ``gates``: what a candidate must pass.
- ``decision``, ``figures``: the outcome with its reasons, in words and in pictures.
- ``trial``: a candidate meets the champion.
- ``promote``: the aliases move, and back again; ``commands``: both on the command line.
"""

from tokenbridge.base.errors import UserError


class PromotionError(UserError):
    """A promotion that cannot be asked for; the message says what to change."""
