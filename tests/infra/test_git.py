"""Which code a run was made with, and checkouts of other code."""

import os
from pathlib import Path

import pytest

from tests.support.checkout import CHECKOUT
from tokenbridge.infra.git import LARGEST, RepositoryError, apply_patch, checkout, git, git_tags, uncommitted

PROJECT_IGNORES = CHECKOUT / ".gitignore"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    git(root, "init", "--quiet")
    for key in ("user.name", "user.email"):
        git(root, "config", key, "test@example.org")
    for name in ("code.py", "dvc.lock", "params.yaml"):
        (root / name).write_text("first\n")
    (root / ".gitignore").write_text("/models/\n")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "first")
    return root


def head(root: Path) -> str:
    return git(root, "rev-parse", "HEAD")


@pytest.mark.parametrize("generated", ["dvc.lock", "params.yaml", "models/weights"])
def test_what_the_runs_write_themselves_is_no_change(root: Path, generated: str) -> None:
    (root / "models").mkdir()
    (root / generated).write_text("second\n")
    assert git_tags(root)["git.dirty"] == "false"
    assert uncommitted(root).patch == b""


@pytest.mark.parametrize("name", ["code.py", "new module.py"])
def test_a_change_is_noticed_and_leaves_the_index_alone(root: Path, name: str) -> None:
    (root / name).write_text("second\n")
    before = git(root, "status", "--porcelain")
    assert git_tags(root) == {"git.commit": head(root), "git.dirty": "true", "mlflow.source.git.commit": head(root)}
    assert b"+second" in uncommitted(root).patch
    assert git(root, "status", "--porcelain") == before


def test_a_patch_rebuilds_every_change(root: Path, tmp_path: Path) -> None:
    (root / "code.py").write_text("second\n")
    (root / "picture.png").write_bytes(bytes(range(256)))
    git(root, "add", "picture.png")  # staged or not
    patch = uncommitted(root).patch
    rebuilt = checkout(root, tmp_path / "rebuilt", head(root))
    apply_patch(rebuilt, patch)
    assert (rebuilt / "code.py").read_text() == "second\n"
    assert (rebuilt / "picture.png").read_bytes() == bytes(range(256))


def test_untracked_links_are_changes_and_large_files_are_left_out(root: Path) -> None:
    (root / "link").symlink_to("nowhere")
    (root / "data.bin").write_bytes(bytes(LARGEST + 1))
    changes = uncommitted(root)
    assert changes.left_out == ["data.bin"]
    assert b"+nowhere" in changes.patch
    assert b"data.bin" not in changes.patch


def test_files_that_may_hold_secrets_are_left_out(root: Path) -> None:
    """Also staged ones; a change of a file that git tracks is recorded."""
    names = [".env", ".envrc", ".git-credentials", "client.env", "deploy/.env.local", "deploy/server.key"]
    names += ["id_ed25519", "notes.txt"]
    (root / "deploy").mkdir()
    for name in names:
        (root / name).write_text("-----BEGIN OPENSSH {} KEY-----\nsecret".format("PRIVATE"))
    git(root, "add", ".env")
    changes = uncommitted(root)
    assert changes.left_out == sorted(names)
    assert changes.patch == b""


def test_the_users_own_settings_of_git_change_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do variables and hooks of a git command that runs us, such as an alias."""
    (root / "code.py").write_text("second\n")
    (root / "new.py").write_text("new\n")
    git(root, "config", "core.autocrlf", "true")
    (root / "grün.txt").write_bytes(b"a\r\nb\n")
    (root / os.fsdecode(b"gr\xfcn")).write_text("a name in Latin-1")
    wanted, tags = uncommitted(root), git_tags(root)
    hook = root / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {root / 'hooked'}\n")
    hook.chmod(0o755)
    for name, value in {
        "color.diff": "always",
        "core.safecrlf": "true",
        "diff.external": "false",
        "diff.mnemonicPrefix": "true",
        "diff.noprefix": "true",
        "diff.orderFile": "missing",
        "status.showUntrackedFiles": "no",
    }.items():
        git(root, "config", name, value)
    monkeypatch.setenv("GIT_DIR", str(root / "elsewhere"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    assert (uncommitted(root), git_tags(root)) == (wanted, tags)
    checkout(root, root.parent / "aside", tags["git.commit"])
    assert not (root / "hooked").exists()


@pytest.mark.parametrize("folder", [".work", ".spool", ".prefect"])
def test_work_in_progress_may_be_on_another_disk(root: Path, tmp_path: Path, folder: str) -> None:
    (root / ".gitignore").write_bytes(PROJECT_IGNORES.read_bytes())
    git(root, "commit", "--all", "--quiet", "--message", "second")
    (root / folder).symlink_to(tmp_path)
    assert git_tags(root)["git.dirty"] == "false"
    assert uncommitted(root).patch == b""


def test_a_checkout_is_brought_to_its_commit_again(root: Path, tmp_path: Path) -> None:
    folder, first = tmp_path / "aside", head(root)
    (root / "code.py").write_text("second\n")
    git(root, "commit", "--quiet", "--all", "--message", "second")
    checkout(root, folder, head(root))
    (folder / "code.py").write_text("edited\n")
    checkout(root, folder, first)
    assert (folder / "code.py").read_text() == "first\n"
    assert (root / "code.py").read_text() == "second\n"


def test_a_checkout_follows_a_project_that_was_moved(root: Path, tmp_path: Path) -> None:
    checkout(root, root / ".work/aside", head(root))
    moved = root.rename(tmp_path / "moved")
    (moved / ".work/aside/code.py").write_text("edited\n")
    assert (checkout(moved, moved / ".work/aside", head(moved)) / "code.py").read_text() == "first\n"


def test_an_unknown_commit_is_explained(root: Path, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"no commit aaaa.* fetch it from where the run was made"):
        checkout(root, tmp_path / "aside", "a" * 40)


def test_without_git_there_is_no_code_to_name(tmp_path: Path) -> None:
    assert git_tags(tmp_path) == {}
    with pytest.raises(RepositoryError, match=r"no history of git, which this needs: clone the project"):
        uncommitted(tmp_path)
