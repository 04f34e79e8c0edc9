"""The commands ``upload``, ``download`` and ``remote``."""

import argparse
from pathlib import Path

from tokenbridge.config import StorageConfig
from tokenbridge.config.project import find_project, here


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the storage commands to the parser of ``tokenbridge``."""
    upload = commands.add_parser("upload", help="store a folder on S3; the same again goes on, or changes nothing")
    upload.add_argument("folder", type=here)
    upload.add_argument("address", help="s3://bucket/prefix")
    upload.set_defaults(command=_upload)

    download = commands.add_parser("download", help="bring a folder that `upload` stored")
    download.add_argument("address", help="s3://bucket/prefix")
    download.add_argument("folder", type=here, help="appears when it is whole")
    download.set_defaults(command=_download)

    remote = commands.add_parser("remote", help="make the bucket of conf/storage DVC's remote on this machine")
    remote.add_argument("overrides", nargs="*", help="Hydra overrides, such as storage.bucket=dvc; none: params.yaml")
    remote.set_defaults(command=_remote)


def _upload(options: argparse.Namespace) -> None:
    from tokenbridge.infra.storage.transfer import upload

    upload(options.folder, options.address, _settings())


def _download(options: argparse.Namespace) -> None:
    from tokenbridge.infra.storage.transfer import download

    download(options.address, options.folder, _settings())


def _remote(options: argparse.Namespace) -> None:
    from tokenbridge.config.params import compose_config, validate
    from tokenbridge.infra.storage.remote import set_dvc_remote

    settings = validate(compose_config(options.overrides)).storage if options.overrides else _settings()
    url = set_dvc_remote(find_project(), settings)
    print(f"{url} is DVC's remote here (.dvc/config.local): `dvc push --run-cache` and `dvc pull --run-cache` use it")


def _settings() -> StorageConfig:
    """Return the settings of the pipeline in this folder. Outside a pipeline only AWS's variables and files count."""
    from tokenbridge.config.params import PARAMS_FILE, load_params

    return load_params().storage if Path(PARAMS_FILE).exists() else StorageConfig()
