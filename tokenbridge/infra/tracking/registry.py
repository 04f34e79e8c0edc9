"""Versions of registered models and their aliases, in the MLflow store.

A version is a model, identified by its digest. A second evaluation of the same weights updates the tags and metrics of
that version. It makes no new version, because there is nothing else to serve.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.artifacts import download_artifacts
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_folder
from tokenbridge.infra.dvc import md5_as_dvc
from tokenbridge.infra.tracking.logged_model import MODEL_MD5, READY, find_models, log_model
from tokenbridge.infra.tracking.store import Store, open_store

CHAMPION, PREVIOUS = "champion", "previous"
VETO = "veto"  # tag: who forbids the promotion of this version, and why
MODEL_ID = "model.id"  # tag: MLflow's id of the logged model
EVALUATION = "evaluation.md5"  # tag: digest of the report that the metrics come from
METRIC = "metric."  # prefix of the tags that hold metrics
LONGEST_DESCRIPTION = 5000  # characters; MLflow's databases hold no more. The run has the whole card
LONGEST_TAG = 5000
DESCRIPTION = """Evaluated models of one recipe, registered by `tokenbridge repro` and the flows. `tokenbridge promote`
moves the alias **champion**, and keeps the one before as **previous**; the tag `veto` on a version forbids it."""


class RegistryError(UserError):
    """The registry lacks what was asked for."""


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    number: int
    tags: dict[str, str]

    @property
    def md5(self) -> str:
        """The digest of the version's pipeline folder, as in dvc.lock."""
        if MODEL_MD5 not in self.tags:
            raise RegistryError(f"{self} has no tag {MODEL_MD5}: only versions that the pipeline registered will do")
        return self.tags[MODEL_MD5]

    def __str__(self) -> str:
        return f"{self.name} version {self.number}"


@contextmanager
def open_registry(root: Path) -> Iterator["Registry"]:
    """Open the registry of the store in use.

    Raises:
        StoreError: if MLflow does not answer or refuses, now or in the ``with`` block.
    """
    with open_store(root) as store:
        yield Registry(store)


def is_registered(root: Path, name: str, tags: dict[str, str]) -> bool:
    """Return whether a version has exactly this model and this evaluation. Return False if MLflow does not answer."""
    with suppress(UserError, OSError), open_registry(root) as registry:
        version = registry.of_model(name, tags[MODEL_MD5])
        return version is not None and version.tags.get(EVALUATION) == tags[EVALUATION]
    return False


class Registry:
    """The project's access to MLflow's model registry."""

    def __init__(self, store: Store) -> None:
        self.store, self.client = store, store.client

    def versions(self, name: str) -> list[Version]:
        """Return the model's versions, newest first."""
        found = self.client.search_model_versions(f"name = '{name}'", order_by=["version_number DESC"])
        return [_version(entry) for entry in found]

    def version(self, name: str, number: int | None = None) -> Version:
        """Return the version of this number, or the newest one by default.

        Raises:
            RegistryError: if there is no such version; the message names the existing ones.
        """
        versions = {version.number: version for version in self.versions(name)}
        if not versions:
            names = ", ".join(model.name for model in self.client.search_registered_models()) or "none"
            raise RegistryError(
                f"no version of {name} is registered: `tokenbridge repro` registers what it evaluates "
                f"(registered models: {names})"
            )
        chosen = max(versions) if number is None else number
        if chosen not in versions:
            raise RegistryError(f"{name} has no version {chosen}: choose one of {', '.join(map(str, versions))}")
        return versions[chosen]

    def holder(self, name: str, alias: str) -> Version | None:
        """Return the version that has the alias, or None."""
        aliases = self.client.get_registered_model(name).aliases
        return self.version(name, int(aliases[alias])) if alias in aliases else None

    def of_model(self, name: str, md5: str) -> Version | None:
        return next((version for version in self.versions(name) if version.tags.get(MODEL_MD5) == md5), None)

    def point(self, alias: str, version: Version) -> None:
        self.client.set_registered_model_alias(version.name, alias, str(version.number))

    def tag(self, version: Version, tags: dict[str, str]) -> None:
        for key, value in tags.items():
            self.client.set_model_version_tag(version.name, str(version.number), key, value[:LONGEST_TAG])

    def fetch(self, version: Version, folder: Path) -> None:
        """Download the version's pipeline to ``folder``, unless the folder exists.

        Raises:
            RegistryError: if the downloaded files are not the model that was registered.
        """
        if folder.exists():
            return
        uri = f"{self.client.get_model_version_download_uri(version.name, str(version.number))}/artifacts"
        with atomic_folder(folder) as target, tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            (came,) = Path(download_artifacts(uri, dst_path=scratch, tracking_uri=self.store.uri)).iterdir()
            if md5_as_dvc(came) != version.md5:
                raise RegistryError(f"the files of {version} are not what was registered: veto it, and retrain")
            shutil.move(came, target)


def register(store: Store, run_id: str, folder: Path, event: dict[str, Any]) -> None:
    """Make sure that the pipeline in ``folder`` is a version with the tags and metrics of a spool's event.

    This may be repeated. A model that is not in this store is logged first, as a model of run ``run_id``.
    """
    registry, name, tags = Registry(store), event["name"], event["tags"]
    logged = (model.model_id for model in find_models(store, tags[MODEL_MD5]) if model.status == READY)
    model_id = next(logged, None) or log_model(store, run_id, folder, event["model"])
    version = registry.of_model(name, tags[MODEL_MD5]) or _create(registry, run_id, name, model_id, tags)
    registry.tag(version, tags)
    for outdated in [key for key in version.tags if key.startswith(METRIC) and key not in tags]:
        store.client.delete_model_version_tag(name, str(version.number), outdated)
    store.client.update_model_version(name, str(version.number), event["description"][:LONGEST_DESCRIPTION])
    store.client.log_batch(
        run_id, metrics=[Metric(key, v, event["time"], 0, model_id=model_id) for key, v in event["metrics"].items()]
    )


def _create(registry: Registry, run_id: str, name: str, model_id: str, tags: dict[str, str]) -> Version:
    try:
        registry.client.create_registered_model(name, description=DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # set when the version is created, so that a kill leaves no version without them
    identity = {MODEL_MD5: tags[MODEL_MD5], MODEL_ID: model_id}
    location = registry.client.get_logged_model(model_id).artifact_location  # MLflow seeks models:/ in another store
    return _version(registry.client.create_model_version(name, location, run_id, identity, model_id=model_id))


def _version(entry: ModelVersion) -> Version:
    return Version(entry.name, int(entry.version), dict(entry.tags))
