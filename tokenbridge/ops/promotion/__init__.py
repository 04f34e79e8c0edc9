"""Promotion: a candidate is measured against the champion on the same data, seeds and extractor, and may replace it.

- ``registration``: the models that a pipeline run registers, and their facts.
- ``measurement``: samples, features and metrics of one version; the samples are kept under ``.work/promotion``.
- ``comparison``: intervals of the difference of two versions; works on tensors only.
- ``gates``: the conditions that a candidate must pass.
- ``decision``, ``figures``: the outcome with its reasons, in words and in pictures.
- ``trial``: measures a candidate and the champion, and decides.
- ``promote``: moves the aliases, and moves them back.
- ``version_evaluation``: measures one version with any sampling settings.
- ``cli``: the commands.
"""

from tokenbridge.base.errors import UserError


class PromotionError(UserError):
    """A promotion that cannot be carried out; the message says what to change."""
