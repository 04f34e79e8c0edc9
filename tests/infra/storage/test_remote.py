"""DVC with a remote on a real server: credentials from the environment, everything else from the settings."""

from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.project import Project, wait_for
from tests.support.services import S3Server
from tokenbridge.base.errors import UserError
from tokenbridge.config import StorageConfig
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


class Checkout(Project):
    """A repository with a remote on the server. Commands get the credentials; the remote has the address."""

    def __init__(self, root: Path, server: S3Server, remote: StorageConfig) -> None:
        super().__init__(root)
        self.server, self.remote = server, remote
        self.ran = root.parent / "ran"  # a letter for each time that the stage really ran
        self.environment |= server.variables | {"RAN": str(self.ran)}
        del self.environment["AWS_ENDPOINT_URL"]

    def clone(self, name: str) -> "Checkout":
        target = self.root.with_name(name)
        self.run("git", "clone", "--quiet", str(self.root), str(target))
        set_dvc_remote(target, self.remote)
        return Checkout(target, self.server, self.remote)

    def stored(self) -> dict[str, Any]:
        """When each object of the remote was written."""
        listing = self.server.client.list_objects_v2(Bucket=self.remote.bucket, Prefix="team/dvc/files")
        return {item["Key"]: item["LastModified"] for item in listing.get("Contents", [])}


@pytest.fixture
def source(s3_server: S3Server, tmp_path: Path) -> Checkout:
    """A committed run, not yet pushed."""
    remote = StorageConfig(endpoint=s3_server.endpoint, bucket=s3_server.new_bucket(), prefix="team/dvc")
    source = Checkout(tmp_path / "source", s3_server, remote)
    source.root.mkdir()
    (source.root / "dvc.yaml").write_text(DVC_YAML)
    (source.root / "make.py").write_text(MAKE)
    source.run("git", "init", "--quiet")
    source.run("dvc", "init", "--quiet")
    source.run("dvc", "repro", "--quiet")
    source.run("git", "add", "--all")
    source.run("git", "commit", "--quiet", "--message", "Data")
    set_dvc_remote(source.root, remote)
    return source


def test_a_killed_push_continues_and_clones_get_the_results(source: Checkout) -> None:
    push = source.start("dvc", "push", "--jobs", "1")
    wait_for(lambda: len(source.stored()) >= 3, "third object")
    push.kill()
    push.wait()
    before = source.stored()
    assert len(before) < FILES
    source.run("dvc", "push", "--run-cache")
    after = source.stored()
    assert len(after) == FILES + 1  # and the folder's list
    assert {key: after[key] for key in before} == before, "stored files were sent again"
    assert source.run("git", "status", "--porcelain") == ""  # git ignores the remote's settings
    pulled = source.clone("pulled")
    pulled.run("dvc", "pull", "--quiet")
    assert pulled.digest("data") == source.digest("data")
    restored = source.clone("restored")
    (restored.root / "dvc.lock").unlink()  # never committed; the run cache knows the outs
    ran = source.ran.read_text()
    assert "is cached" in restored.run("dvc", "repro", "--pull")
    assert source.ran.read_text() == ran
    assert restored.digest("data") == source.digest("data")


def test_without_a_repository_dvc_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DVC cannot work in .*not inside of a DVC repository"):
        set_dvc_remote(tmp_path, StorageConfig(bucket="team"))
