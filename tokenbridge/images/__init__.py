"""Images on disk: Parquet shards, splits, decoding."""

from tokenbridge.base.errors import UserError

TRAIN, VALIDATION, TEST = "train", "validation", "test"  # names of the splits, in the order in which they are written


class DataError(UserError):
    """Source data that cannot be used. The message names the file and the remedy."""
