"""Images: where they come from (mirrors, folders), and the Parquet shards that they are kept in."""

from tokenbridge.errors import UserError


class DataError(UserError):
    """Source data that cannot be used; the message names the file and the remedy."""
