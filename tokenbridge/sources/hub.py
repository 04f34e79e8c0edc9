"""The files of a data set on the Hugging Face Hub. They are read in parts, and nothing is cached on disk."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from httpx2 import HTTPError
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_file_system import HfFileSystemResolvedRepositoryPath

from tokenbridge.images import DataError
from tokenbridge.sources.places import HUB, StoredFile

NOT_JSON = (json.JSONDecodeError, UnicodeDecodeError, RecursionError)
OTHER_JSON = (LookupError, TypeError, AttributeError, ArithmeticError)  # huggingface_hub takes its form for granted
REFUSED = (401, 403)  # HTTP: unauthorized, forbidden


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Convert the errors of huggingface_hub into a DataError that says what to do."""
    try:
        yield
    except DataError:
        raise
    except HfHubHTTPError as error:
        raise DataError(answer_of(error, address)) from error
    except (*NOT_JSON, *OTHER_JSON) as error:
        raise DataError(
            f"{address}: the answer is not the Hub's ({error!r:.200}): check HF_ENDPOINT and the network's proxy"
        ) from error
    except (FileNotFoundError, ValueError, NotImplementedError) as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            raise DataError(answer_of(error.__cause__, address)) from error
        raise DataError(
            f"{address} is not an address of a data set on the Hub: write hf://datasets/owner/name[/folder]"
        ) from error
    except (HTTPError, OSError) as error:  # network errors
        raise DataError(
            f"{address}: the Hub cannot be reached ({error}): repeat the command, finished work is kept"
        ) from error


def answer_of(error: HfHubHTTPError, address: str) -> str:
    """Return what the Hub's answer means, and what to do."""
    gated = isinstance(error, GatedRepoError)  # also a RepositoryNotFoundError
    if not gated and isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return f"{address} is not on the Hub, or you have no access: correct data.root, or set HF_TOKEN"
    if gated or error.response.status_code in REFUSED:
        return f"{address} is gated or private: accept its terms on its page, then run `hf auth login` or set HF_TOKEN"
    return f"{address}: the Hub answers with an error ({error}): try again later"


def hub_files(address: str) -> list[StoredFile]:
    """Return every file below ``hf://datasets/owner/name[@revision][/folder]``.

    A file's version is its digest by Git or LFS. All files are of the commit that the revision names now, so a later
    push does not mix two versions.
    """
    system = HfFileSystem(skip_instance_cache=True)  # without the cache it lists the files again
    with explained(address):
        place = system.resolve_path(address)
        if not isinstance(place, HfFileSystemResolvedRepositoryPath):
            raise ValueError(address)
        commit = HfApi().repo_info(place.repo_id, repo_type=place.repo_type, revision=place.revision).sha
        base = f"{place.repo_type}s/{place.repo_id}@{commit}/{place.path_in_repo}".rstrip("/")
        listed = system.find(base, detail=True)
        assert isinstance(listed, dict)  # path -> details
        return [stored_file(system, base, path, about) for path, about in listed.items()]


def stored_file(system: HfFileSystem, base: str, path: str, about: dict[str, Any]) -> StoredFile:
    version = about["lfs"].sha256 if about.get("lfs") else about["blob_id"]
    name = path.removeprefix(base).lstrip("/") or path.rpartition("/")[2]
    return StoredFile(name, HUB + path, int(about["size"]), version, partial(read_range, system, path))


def read_range(system: HfFileSystem, path: str, start: int, size: int) -> bytes:
    """Return bytes start..start+size-1, by one request. huggingface_hub repeats transfers that break off."""
    if size == 0:
        return b""
    with explained(HUB + path):
        content: bytes = system.cat_file(path, start, start + size, cache_type="none")
    if len(content) != size:
        raise DataError(
            f"{HUB + path} gave {len(content):,} of {size:,} bytes: repeat the command, finished work is kept"
        )
    return content
