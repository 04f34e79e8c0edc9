"""Upload and download whole folders on S3. No other package imports boto3.

``upload`` removes the manifest before it changes any file under the prefix, and writes the manifest last. So a prefix
with a manifest is complete, and a prefix without one counts as empty. ``download`` makes its folder appear when every
file has the manifest's digest. After an interruption both continue with the files that are missing. They transfer no
file again that has the right digest.
"""

from tokenbridge.base.errors import UserError


class StorageError(UserError):
    """S3 refused or did not answer. The message names the address, the setting and the remedy, but never a secret."""
