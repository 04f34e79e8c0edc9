"""The connection to S3, and error messages that say what to do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore import exceptions as aws
from botocore.config import Config
from s3transfer.exceptions import RetriesExceededError

from tokenbridge.config import StorageConfig
from tokenbridge.infra.storage import StorageError

THREADS = 16  # concurrent requests
BROKEN_STREAM = (aws.HTTPClientError, aws.IncompleteReadError)
NO_ANSWER = (aws.ConnectionError, *BROKEN_STREAM, RetriesExceededError)
GIVE_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile (AWS_PROFILE, storage.profile)"
DENIED = "access denied: ask the bucket's owner for the right, or take other credentials (AWS_PROFILE, storage.profile)"
EXPIRED = "the session token is not valid, or no longer: log in again, or set a new AWS_SESSION_TOKEN"
REGION = "the bucket is in another region: set storage.region"
MISSING = "it is missing: correct the address, or upload it again"
REPLACED = "it was replaced while it was being read: repeat"

REMEDIES = {  # by S3's error code; the answer to a HEAD request has only the number
    "NoSuchBucket": "there is no such bucket: make it, or correct the address",
    "NoSuchKey": MISSING,
    "404": MISSING,
    "AccessDenied": DENIED,
    "403": DENIED,
    "SignatureDoesNotMatch": "the secret key does not belong to the access key: correct AWS_SECRET_ACCESS_KEY, "
    "or the profile's",
    "InvalidAccessKeyId": f"the server does not know this access key: {GIVE_CREDENTIALS}",
    "ExpiredToken": EXPIRED,
    "InvalidToken": EXPIRED,
    "PermanentRedirect": REGION,
    "AuthorizationHeaderMalformed": REGION,
    "PreconditionFailed": REPLACED,
    "412": REPLACED,
}  # the server's own words explain the other codes


def endpoint_of(config: StorageConfig) -> str | None:
    """Return the address of the server in use. None stands for Amazon's, or for the one in ~/.aws/config.

    Raises:
        StorageError: if it holds a user name.
    """
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if "@" in urlsplit(os.environ.get(name, "")).netloc:  # such an address is not shown
            raise StorageError(
                f"{name} holds a user name: credentials belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
    return config.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def make_client(config: StorageConfig) -> Any:
    """Return a boto3 client, which threads may share. AWS_MAX_ATTEMPTS limits the attempts per request (default 5)."""
    endpoint_of(config)  # refuses what boto3 would show
    settings = Config(connect_timeout=10, read_timeout=60, max_pool_connections=THREADS)
    with explained("S3", config):
        session = boto3.Session(profile_name=config.profile, region_name=config.region)
        try:
            return session.client("s3", endpoint_url=config.endpoint, config=settings)
        except ValueError as error:
            raise StorageError(f"{error}: correct storage.endpoint or AWS_ENDPOINT_URL") from error


@contextmanager
def explained(place: str, config: StorageConfig) -> Iterator[None]:
    """Raise errors of boto3 as a ``StorageError`` about ``place``."""
    try:
        yield
    except aws.ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        raise StorageError(f"{place}: {REMEDIES.get(code, error)}") from error
    except (aws.NoCredentialsError, aws.PartialCredentialsError) as error:
        raise StorageError(f"{place}: no credentials ({error}): {GIVE_CREDENTIALS}") from error
    except aws.ProfileNotFound as error:
        raise StorageError(f"{error}: correct storage.profile or AWS_PROFILE, or make the profile") from error
    except NO_ANSWER as error:
        raise StorageError(
            f"{place}: no answer from {endpoint_of(config) or 'Amazon S3'}: start it, check the network, or correct "
            f"storage.endpoint or AWS_ENDPOINT_URL; what is done stays done, so repeat then. It was: {error}"
        ) from error
    except aws.BotoCoreError as error:  # such as an AWS setting that boto3 cannot use
        raise StorageError(f"{place}: {error}") from error
