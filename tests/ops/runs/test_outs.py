"""Outs are read once, and DVC learns which are not what it recorded."""

import os
from pathlib import Path

import pytest
import yaml
from dvc.cli import main

from tokenbridge.infra.dvc import md5_as_dvc
from tokenbridge.ops.runs import outs
from tokenbridge.ops.runs.outs import VERIFIED, expose_damaged, note_verified


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A lock file with the folder ``moments`` and the file ``report``."""
    (tmp_path / "moments").mkdir()
    for name in ("moments/a", "moments/b", "report"):
        (tmp_path / name).write_text(name)
    made = [{"path": out, "md5": md5_as_dvc(tmp_path / out)} for out in ("moments", "report")]
    (tmp_path / "dvc.lock").write_text(
        yaml.safe_dump({"schema": "2.0", "stages": {"make": {"cmd": "make", "outs": made}}})
    )
    return tmp_path


def damage(path: Path) -> int:
    """Change a file, and keep its size and its time, which is returned."""
    before = path.stat().st_mtime_ns
    path.write_text(path.read_text()[:-1] + "?")
    os.utime(path, ns=(before, before))
    return before


def test_a_damaged_out_is_named_until_it_is_right(root: Path) -> None:
    before = damage(root / "moments/b")
    for _ in range(2):
        assert expose_damaged(root) == ["moments"]
    assert (root / "moments/b").stat().st_mtime_ns > before
    (root / "moments/b").write_text("moments/b")
    assert expose_damaged(root) == []


def test_what_was_verified_or_made_is_not_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert expose_damaged(root) == []
    monkeypatch.setattr(outs, "md5_as_dvc", lambda path: pytest.fail(f"{path} was read"))
    assert expose_damaged(root) == []
    (root / "report").unlink()
    (root / "moments/a").write_text("restored")
    note_verified(root, ["moments"])
    assert expose_damaged(root) == []


@pytest.mark.parametrize("text", ["", "[1]", "null", '{"moments": 7}'])
def test_damaged_notes_are_as_good_as_none(root: Path, text: str) -> None:
    (root / VERIFIED).parent.mkdir()
    (root / VERIFIED).write_text(text)
    damage(root / "report")
    assert expose_damaged(root) == ["report"]


def test_dvc_sees_what_it_restored_from_a_damaged_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"make": {"cmd": "echo a > out", "outs": ["out"]}}}))
    monkeypatch.chdir(tmp_path)
    assert [main(["init", "--no-scm", "--quiet"]), main(["repro", "--quiet"])] == [0, 0]
    damage(tmp_path / "out")
    assert expose_damaged(tmp_path) == ["out"]
    assert main(["status"]) == 0
    assert "modified" in capsys.readouterr().out
