"""The commands ``upload``, ``download`` and ``remote``."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenbridge.base.errors import UserError
from tokenbridge.config import StorageConfig


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the storage commands to the parser of ``tokenbridge``."""
    upload = commands.add_parser("upload", help="store a folder on S3; the same again goes on, or changes nothing")
    upload.add_argument("folder", type=Path)
    upload.add_argument("address", help="s3://bucket/prefix")
    upload.set_defaults(command=_upload)

    download = commands.add_parser("download", help="bring a folder that `upload` stored")
    download.add_argument("address", help="s3://bucket/prefix")
    download.add_argument("folder", type=Path, help="appears when it is whole")
    download.set_defaults(command=_download)

    remote = commands.add_parser("remote", help="make the bucket of conf/storage DVC's remote on this machine")
    remote.add_argument("overrides", nargs="*", help="Hydra overrides, such as storage.bucket=dvc; none: params.yaml")
    remote.set_defaults(command=_remote)


def _upload(options: argparse.Namespace) -> None:
    from tokenbridge.infra.storage.transfer import upload

    with _errors_in_one_line():
        upload(options.folder, options.address, _settings())


def _download(options: argparse.Namespace) -> None:
    from tokenbridge.infra.storage.transfer import download

    with _errors_in_one_line():
        download(options.address, options.folder, _settings())


def _remote(options: argparse.Namespace) -> None:
    from tokenbridge.config.params import compose_config, validate
    from tokenbridge.infra.storage.remote import set_dvc_remote

    settings = validate(compose_config(options.overrides)).storage if options.overrides else _settings()
    url = set_dvc_remote(Path.cwd(), settings)
    print(f"{url} is DVC's remote here (.dvc/config.local): `dvc push --run-cache` and `dvc pull --run-cache` use it")


def _settings() -> StorageConfig:
    """Return the settings of the pipeline in this folder. Outside a pipeline only AWS's variables and files count."""
    from tokenbridge.config.params import PARAMS_FILE, load_params

    return load_params().storage if Path(PARAMS_FILE).exists() else StorageConfig()


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Report Ctrl-C, and files that cannot be read or written, in one line."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise UserError("interrupted: what is done stays done, and the same command goes on there") from error
    except OSError as error:
        raise UserError(f"{error.filename or 'the disk'}: {error.strerror}: fix that and repeat") from error
