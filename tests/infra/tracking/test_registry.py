"""Versions of registered models: one for each model, whatever is repeated, killed or unreachable."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenbridge.infra.dvc import md5_as_dvc
from tokenbridge.infra.tracking.logged_model import MODEL_MD5
from tokenbridge.infra.tracking.pending import find_spools
from tokenbridge.infra.tracking.registry import (
    EVALUATION,
    LONGEST_DESCRIPTION,
    METRIC,
    MODEL_ID,
    Registry,
    RegistryError,
    Version,
    is_registered,
    open_registry,
)
from tokenbridge.infra.tracking.spool import Tracker
from tokenbridge.infra.tracking.store import Store, StoreError
from tokenbridge.infra.tracking.sync import sync_all

pytestmark = pytest.mark.pipeline
NAME = "tokenbridge-shapes-micro"
Record = Callable[..., Tracker]


def tags_of(folder: Path, evaluation: str, fd: float) -> dict[str, str]:
    return {MODEL_MD5: md5_as_dvc(folder), EVALUATION: evaluation, f"{METRIC}fd": f"{fd:.6g}", "git.commit": "abc"}


def record(root: Path, folder: Path, evaluation: str = "first", fd: float = 6.5, description: str = "card") -> Tracker:
    with Tracker.open("register@micro", "key", root, system_interval=0) as tracker:
        tags = tags_of(folder, evaluation, fd)
        tracker.version(folder, name=NAME, model="micro", tags=tags, metrics={"fd": fd}, description=description)
    return tracker


def send(root: Path) -> None:
    assert sync_all(root).problem is None
    assert find_spools(root) == []  # a refused record would stay


@pytest.fixture
def another(pipeline_folder: Path, tmp_path: Path) -> Path:
    """A model of other bytes."""
    folder = shutil.copytree(pipeline_folder, tmp_path / "another")
    (folder / "note").write_text("other")
    return folder


def test_an_evaluated_model_becomes_one_version_even_if_it_is_sent_twice(
    root: Path, store: Store, pipeline_folder: Path
) -> None:
    with Tracker.open("train@micro", "key", root, system_interval=0) as training:
        training.model(pipeline_folder, "micro")
    tracker = record(root, pipeline_folder)
    shutil.copytree(tracker.folder, root / "before")
    send(root)
    (root / "before").rename(tracker.folder)
    send(root)
    (model,) = store.client.search_logged_models([store.experiment])  # that of the training
    registry = Registry(store)
    (version,) = registry.versions(NAME)
    assert (version.number, version.tags[MODEL_ID]) == (1, model.model_id)
    assert tags_of(pipeline_folder, "first", 6.5).items() <= version.tags.items()
    assert [(metric.key, metric.value) for metric in model.metrics] == [("fd", 6.5)]
    assert store.client.get_model_version(NAME, "1").description == "card"
    assert is_registered(root, NAME, tags_of(pipeline_folder, "first", 6.5))
    assert not is_registered(root, NAME, tags_of(pipeline_folder, "second", 6.5))
    assert registry.holder(NAME, "champion") is None


def test_a_second_evaluation_updates_the_same_version(root: Path, store: Store, pipeline_folder: Path) -> None:
    record(root, pipeline_folder)
    send(root)
    Registry(store).tag(Registry(store).version(NAME), {f"{METRIC}fid": "4"})  # which the second does not measure
    record(root, pipeline_folder, evaluation="second", fd=5.0, description="x" * 9000)
    send(root)
    (version,) = Registry(store).versions(NAME)
    assert f"{METRIC}fid" not in version.tags
    assert (version.tags[EVALUATION], version.tags[f"{METRIC}fd"]) == ("second", "5")
    assert store.client.get_model_version(NAME, "1").description == "x" * LONGEST_DESCRIPTION


def test_another_model_is_the_next_version(root: Path, store: Store, pipeline_folder: Path, another: Path) -> None:
    record(root, pipeline_folder)
    record(root, another)
    send(root)
    registry = Registry(store)
    assert [version.number for version in registry.versions(NAME)] == [2, 1]
    assert registry.version(NAME).md5 == md5_as_dvc(another)
    registry.point("champion", registry.version(NAME, 1))
    holder = registry.holder(NAME, "champion")
    assert holder is not None
    assert holder.number == 1


def test_a_store_that_was_down_gets_the_version_later(
    root: Path, store: Store, pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets the model as it was recorded, even if the project has no such folder any more."""
    folder = shutil.copytree(pipeline_folder, root / "models/micro")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert not is_registered(root, NAME, tags_of(folder, "first", 6.5))
    record(root, folder)
    assert sync_all(root).problem is not None
    shutil.rmtree(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    send(root)
    registry = Registry(store)
    registry.fetch(registry.version(NAME), root / "fetched")
    assert md5_as_dvc(root / "fetched") == md5_as_dvc(pipeline_folder)


def test_a_kill_between_version_and_tags_is_repaired(
    root: Path, store: Store, pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Registry, version: Version, tags: dict[str, str]) -> None:
        raise ConnectionError("the process died here")

    record(root, pipeline_folder)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "tag", killed)
        assert sync_all(root).problem is not None
    send(root)
    (version,) = Registry(store).versions(NAME)
    assert version.tags[EVALUATION] == "first"
    assert len(store.client.search_logged_models([store.experiment])) == 1


def test_files_that_changed_in_the_store_are_refused(root: Path, store: Store, pipeline_folder: Path) -> None:
    record(root, pipeline_folder)
    send(root)
    registry = Registry(store)
    (index,) = (root / "mlartifacts").rglob("model_index.json")
    index.write_text(index.read_text() + " ")
    with pytest.raises(RegistryError, match="are not what was registered"):
        registry.fetch(registry.version(NAME), root / "fetched")
    assert not (root / "fetched").exists()


def test_what_is_missing_is_named(root: Path, store: Store) -> None:
    with pytest.raises(RegistryError, match=r"no version of other is registered.*\(registered models: none\)"):
        Registry(store).version("other")
    store.client.create_registered_model("by-hand")
    store.client.create_model_version("by-hand", "file:///nowhere")
    with pytest.raises(RegistryError, match=r"by-hand version 1 has no tag model\.md5"):
        _ = Registry(store).version("by-hand").md5
    with (
        pytest.raises(StoreError, match="Registered Model with name=unknown not found"),
        open_registry(root) as registry,
    ):
        registry.holder("unknown", "champion")


@pytest.mark.parametrize("gone", ["version", "model"])
def test_a_version_that_is_deleted_meanwhile_is_named(root: Path, store: Store, gone: str) -> None:
    store.client.create_registered_model(NAME)
    store.client.create_model_version(NAME, "file:///nowhere", tags={MODEL_MD5: "abc"})
    store.client.set_registered_model_alias(NAME, "champion", "1")
    with pytest.raises(StoreError, match="lacks what was deleted meanwhile"), open_registry(root) as registry:
        version = registry.version(NAME)
        if gone == "version":
            store.client.delete_model_version(NAME, "1")
            assert registry.holder(NAME, "champion") is None
        else:
            store.client.delete_registered_model(NAME)
        registry.tag(version, {"promotion": "promoted"})
