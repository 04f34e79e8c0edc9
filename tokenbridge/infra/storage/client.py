"""The connection to S3, and error messages that say what to do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)

from tokenbridge.config import StorageConfig
from tokenbridge.infra.storage import StorageError

THREADS = 16  # concurrent requests
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
BROKEN_STREAM = (HTTPClientError, IncompleteReadError)
NO_ANSWER = (ConnectionError, *BROKEN_STREAM)
GIVE_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile (AWS_PROFILE, storage.profile)"
DENIED = "access denied: ask the bucket's owner for the right, or take other credentials (AWS_PROFILE, storage.profile)"
EXPIRED = "the session token is not valid, or no longer: log in again, or set AWS_SESSION_TOKEN anew"
REGION = "the bucket is in another region: set storage.region"
BUSY = "the server is overloaded or broken: repeat later; what is done stays done"

REMEDIES = {  # by S3's error code; the answer to a HEAD request has only the number
    "NoSuchBucket": "there is no such bucket: make it, or correct the address",
    "InvalidBucketName": "S3 allows no such bucket name: correct the address",
    "NoSuchKey": "there is no such object",
    "404": "there is no such object or bucket",
    "AccessDenied": DENIED,
    "403": DENIED,
    "SignatureDoesNotMatch": "the secret key does not belong to the access key: correct AWS_SECRET_ACCESS_KEY, "
    "or the profile's",
    "InvalidAccessKeyId": f"the server does not know this access key: {GIVE_CREDENTIALS}",
    "ExpiredToken": EXPIRED,
    "InvalidToken": EXPIRED,
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
    "PermanentRedirect": REGION,
    "AuthorizationHeaderMalformed": REGION,
    "IllegalLocationConstraintException": REGION,
    "BadDigest": "the data changed on its way to the server: repeat",
    "PreconditionFailed": "it was replaced while it was being read: repeat",
    "412": "it was replaced while it was being read: repeat",
    "NoSuchUpload": "another upload to this place ended this one: repeat when it is done",
    "SlowDown": BUSY,
    "ServiceUnavailable": BUSY,
    "InternalError": BUSY,
}


def endpoint_of(config: StorageConfig) -> str | None:
    """Return the address of the server in use. None stands for Amazon's, or for the one in ~/.aws/config."""
    return config.endpoint or next((os.environ[name] for name in ENDPOINT_VARIABLES if os.environ.get(name)), None)


def make_client(config: StorageConfig) -> Any:
    """Return a boto3 client, which threads may share. AWS_MAX_ATTEMPTS limits the attempts per request (default 5)."""
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
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        raise StorageError(f"{place}: {REMEDIES.get(code, error)}") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise StorageError(f"{place}: no credentials ({error}): {GIVE_CREDENTIALS}") from error
    except ProfileNotFound as error:
        raise StorageError(f"{error}: correct storage.profile or AWS_PROFILE, or make the profile") from error
    except NO_ANSWER as error:
        server = endpoint_of(config) or "Amazon's S3"
        raise StorageError(
            f"{place}: no answer from {server}: start it, check the network, or correct the address "
            f"(storage.endpoint, AWS_ENDPOINT_URL); what is done stays done, so repeat then. It was: {error}"
        ) from error
    except BotoCoreError as error:  # such as an AWS setting that boto3 cannot use
        raise StorageError(f"{place}: {error}") from error
