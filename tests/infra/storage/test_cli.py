"""The commands as a user types them."""

import argparse
from pathlib import Path

import pytest

from tests.support.checkout import CHECKOUT
from tests.support.dvc import init_dvc
from tests.support.services import S3Place
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import sha256_tree
from tokenbridge.config.params import write_params
from tokenbridge.infra.storage.cli import add_commands


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(required=True))
    options = parser.parse_args(arguments)
    options.command(options)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").symlink_to(CHECKOUT / "conf")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"x" * 1000)
    return tmp_path / "model"


@pytest.mark.cluster
def test_outside_a_project_the_environment_sets_the_server(
    folder: Path, s3_place: S3Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_place.server.endpoint)
    run("upload", str(folder), s3_place.uri)
    assert f"{s3_place.uri} is whole; 1 of 1 files were sent" in capsys.readouterr().out
    run("download", s3_place.uri, "back")
    assert sha256_tree(Path("back")) == sha256_tree(folder)
    with pytest.raises(NotADirectoryError, match=r"weights/\.back\.download"):
        run("download", s3_place.uri, "model/weights/back")


@pytest.mark.cluster
def test_in_a_project_its_settings_set_the_server(folder: Path, s3_place: S3Place) -> None:
    write_params([f"storage.endpoint={s3_place.server.endpoint}"], Path())
    run("upload", str(folder), s3_place.uri)
    assert s3_place.folder.digest("weights")


@pytest.mark.cluster
def test_the_remote_is_that_of_the_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init_dvc(Path.cwd())
    Path("dvc.yaml").touch()
    with pytest.raises(UserError, match=r"storage\.bucket is not set"):
        run("remote")
    settings = ["endpoint=https://s3.example.org", "region=eu-1", "bucket=team", "prefix=dvc", "profile=me"]
    run("remote", *[f"storage.{setting}" for setting in settings])
    assert "s3://team/dvc is DVC's remote here" in capsys.readouterr().out
    written = Path(".dvc/config.local").read_text()
    remote = {"remote = storage", "url = s3://team/dvc", "endpointurl = https://s3.example.org", "region = eu-1"}
    assert {line.strip() for line in written.splitlines()} >= remote | {"profile = me"}
