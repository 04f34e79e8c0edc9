"""Folders on S3, whole or not at all; the only importer of boto3.

``upload`` writes the manifest last and removes it before anything under it changes, so a prefix with a manifest is
whole, and one without is nothing. ``download`` makes its folder appear when every file has the manifest's digest.
Both go on where they were interrupted; what is there with the right digest is not sent again.
"""

from tokenbridge.base.errors import UserError


class StorageError(UserError):
    """S3 said no, or nothing; the message names the address, the setting and the remedy, and never a secret."""
