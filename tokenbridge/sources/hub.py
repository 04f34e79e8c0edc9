"""The files of a data set on the Hugging Face Hub. They are read in parts, and nothing is cached on disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from httpx2 import HTTPError
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_file_system import HfFileSystemResolvedRepositoryPath

from tokenbridge.images import DataError

SCHEME = "hf://"
REFUSED = (401, 403)  # HTTP: unauthorized, forbidden

Entry = tuple[str, str, int, str]  # path below the address, whole address, bytes, digest by Git or LFS


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Convert the errors of huggingface_hub into a DataError that says what to do."""
    try:
        yield
    except GatedRepoError as error:
        raise DataError(refusal(address)) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DataError(
            f"{address} is not on the Hub, or you have no access: correct data.root, or set HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in REFUSED:
            raise DataError(refusal(address)) from error
        raise DataError(f"{address}: the Hub answers with an error ({error}): try again later") from error
    except (FileNotFoundError, ValueError, NotImplementedError) as error:
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            with explained(address):
                raise cause from None
        raise DataError(
            f"{address} is not an address of a data set on the Hub: write hf://datasets/owner/name[/folder]"
        ) from error
    except (HTTPError, OSError) as error:  # network errors
        raise DataError(
            f"{address}: the Hub cannot be reached ({error}): repeat the command, finished work is kept"
        ) from error


def refusal(address: str) -> str:
    return f"{address} is gated or private: accept its terms on its page, then run `hf auth login` or set HF_TOKEN"


def hub_files(address: str) -> Iterator[tuple[Entry, partial[bytes]]]:
    """Yield every file below ``hf://datasets/owner/name[@revision][/folder]``, and a function that reads (start, size).

    All files are of the commit that the revision names now. So a later push does not mix two versions.
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
    for path, about in listed.items():
        version = about["lfs"].sha256 if about.get("lfs") else about["blob_id"]
        name = path.removeprefix(base).lstrip("/") or path.rpartition("/")[2]
        yield (name, SCHEME + path, about["size"], version), partial(read_range, system, path)


def read_range(system: HfFileSystem, path: str, start: int, size: int) -> bytes:
    """Return bytes start..start+size-1, by one request. huggingface_hub repeats transfers that break off."""
    if size == 0:
        return b""
    with explained(SCHEME + path):
        content: bytes = system.cat_file(path, start, start + size, cache_type="none")
    if len(content) != size:
        raise DataError(
            f"{SCHEME + path} gave {len(content):,} of {size:,} bytes: repeat the command, finished work is kept"
        )
    return content
