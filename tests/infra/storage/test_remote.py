"""DVC with its remote on the real server: credentials from the environment, everything else from the settings."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.project import IDENTITY, wait_for
from tests.support.services import S3Server
from tokenbridge.base.files import sha256_tree
from tokenbridge.config import StorageConfig
from tokenbridge.infra.storage import StorageError
from tokenbridge.infra.storage.remote import set_dvc_remote

pytestmark = pytest.mark.cluster
FILES = 40
DVC_YAML = """
stages:
  make:
    cmd: python make.py
    deps: [make.py]
    outs: [data]
"""
MAKE = f"""
import os, pathlib
with open(os.environ["RAN"], "a") as ran: ran.write("x")
pathlib.Path("data").mkdir()
for index in range({FILES}): pathlib.Path("data", str(index)).write_bytes(bytes([index]) * 300_000)
"""


@dataclass
class Team:
    """A repository whose data one person pushes, and the bucket that they go to."""

    server: S3Server
    folder: Path
    config: StorageConfig

    @property
    def ran(self) -> Path:
        """A letter for each time that the stage really ran."""
        return self.folder / "ran"

    def start(self, root: Path, *command: str) -> subprocess.Popen[str]:
        environment = os.environ | self.server.environment | IDENTITY | {"RAN": str(self.ran)}
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        del environment["AWS_ENDPOINT_URL"]  # the remote has it
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=root, env=environment, **pipes)

    def run(self, root: Path, *command: str) -> str:
        process = self.start(root, *command)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output

    def clone(self, name: str) -> Path:
        self.run(self.folder, "git", "clone", "--quiet", "source", name)
        set_dvc_remote(self.folder / name, self.config)
        return self.folder / name

    def stored(self) -> dict[str, Any]:
        """When each object of the remote was written."""
        listing = self.server.client.list_objects_v2(Bucket=self.config.bucket, Prefix="team/dvc/files")
        return {item["Key"]: item["LastModified"] for item in listing.get("Contents", [])}


@pytest.fixture(scope="module")
def team(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Team:
    folder = tmp_path_factory.mktemp("team")
    config = StorageConfig(endpoint=s3_server.endpoint, bucket=s3_server.new_bucket(), prefix="team/dvc")
    team, source = Team(s3_server, folder, config), folder / "source"
    source.mkdir()
    (source / "dvc.yaml").write_text(DVC_YAML)
    (source / "make.py").write_text(MAKE)
    team.run(source, "git", "init", "--quiet")
    team.run(source, "dvc", "init", "--quiet")
    team.run(source, "dvc", "repro", "--quiet")
    team.run(source, "git", "add", "--all")
    team.run(source, "git", "commit", "--quiet", "--message", "Data")
    set_dvc_remote(source, config)
    return team


def test_a_killed_push_is_gone_on_with_and_a_fresh_clone_pulls(team: Team) -> None:
    source = team.folder / "source"
    push = team.start(source, "dvc", "push", "--jobs", "1")
    wait_for(lambda: len(team.stored()) >= 3, "third object")
    push.kill()
    push.wait()
    before = team.stored()
    assert len(before) < FILES
    team.run(source, "dvc", "push", "--run-cache")
    after = team.stored()
    assert len(after) == FILES + 1  # and the folder's list
    assert {key: after[key] for key in before} == before, "what was there was sent again"
    clone = team.clone("pulled")
    team.run(clone, "dvc", "pull", "--quiet")
    assert sha256_tree(clone / "data") == sha256_tree(source / "data")
    assert team.run(source, "git", "status", "--porcelain") == ""  # the remote is this machine's affair


def test_results_are_restored_by_what_they_were_made_of(team: Team) -> None:
    """A clone that has no dvc.lock, as after a change that was made elsewhere: the run cache knows the outs."""
    team.run(team.folder / "source", "dvc", "push", "--run-cache")
    clone = team.clone("restored")
    (clone / "dvc.lock").unlink()
    ran = team.ran.read_text()
    assert "is cached" in team.run(clone, "dvc", "repro", "--pull")
    assert team.ran.read_text() == ran
    assert sha256_tree(clone / "data") == sha256_tree(team.folder / "source" / "data")


def test_without_a_repository_dvc_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"DVC takes no remote in .*not inside of a DVC repository"):
        set_dvc_remote(tmp_path, StorageConfig(bucket="team"))
