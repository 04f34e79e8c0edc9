"""Settings of the S3 store. Credentials are not settings: they come from AWS's own variables, files and roles."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from tokenbridge.base.checks import require


@dataclass
class StorageConfig:
    """The location of the S3 store. It is never a stage parameter: a move must not fetch or retrain anything.

    null means to look in AWS's own places: AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_PROFILE, ~/.aws/config.
    """

    endpoint: str | None = None  # http(s)://host[:port] of a server that is not Amazon's
    region: str | None = None
    bucket: str | None = None  # of DVC's remote
    prefix: str | None = None  # of DVC's remote, inside the bucket
    profile: str | None = None  # a section of ~/.aws/config and ~/.aws/credentials

    def __post_init__(self) -> None:
        if self.endpoint is None:
            return
        parts = urlsplit(self.endpoint)
        require(
            parts.scheme in ("http", "https") and bool(parts.hostname),
            f"storage.endpoint is {self.endpoint!r}: write http://host:port or https://host",
        )
        require(
            parts.username is None,
            "storage.endpoint holds a user name: credentials belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
