"""Loading is strict, and what is saved again is the same, wherever it lay."""

from pathlib import Path

import pytest

from tests.conftest import small_model
from tokenbridge.base.files import sha256_tree
from tokenbridge.base.loading import LoadError, load_whole
from tokenbridge.model import TokenBridgeTransformer


def test_a_loaded_model_saves_as_it_was(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "first")
    load_whole(TokenBridgeTransformer, tmp_path / "first").save_pretrained(tmp_path / "second")
    assert sha256_tree(tmp_path / "first") == sha256_tree(tmp_path / "second")
    assert str(tmp_path) not in (tmp_path / "second/config.json").read_text()


def test_a_folder_without_a_config_is_explained(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"config\.json is missing"):
        load_whole(TokenBridgeTransformer, tmp_path)
