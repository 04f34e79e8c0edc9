"""MLflow's pages: their addresses, and the experiment's description and saved views of the runs table.

A saved view is a tag of the experiment. MLflow 3 lists it in the menu "Views" and applies it when an address has its
key. The tag has the form that MLflow's own pages write when a view is saved there.
"""

import json
import re
import time
from collections.abc import Sequence
from urllib.parse import quote

LOCAL_ADDRESS = ("127.0.0.1", 5000)  # where `tokenbridge ui` serves the local store
DESCRIPTION_TAG = "mlflow.note.content"
DESCRIPTION = """One row `pipeline` is one execution; the **+** beside it shows its stages.
Menu **Views**: `Pipelines` has the columns that matter, `Trainings` leaves trainings alone behind the +.

| column | meaning |
|---|---|
| `fd_efficientnet_lite0_...`, `fid_inception` | distance of generated from real images; lower is better |
| `class_accuracy` | share of generated images that a classifier finds to be of the class asked for |
| `validation_loss` | cross-entropy per dimension on validation images, in nats; lower is better |
| parameter `overrides` | the settings that the run was started with, which are in its name too |
| tag `model` | on a pipeline row: the model that the metrics are of, the best by distance if there are several |
| tag `stage` | which stage a row is of, such as `train@tiny` |
| tag `stage.key` | digest of the stage's parameters and inputs; equal keys mean equal results |
| tag `reused.<stage>` | on a pipeline row: the stage was up to date, and this run made its outputs |
| tag `git.commit`, `git.dirty` | the code; `dirty` is `true` when files differed from that commit |

Status KILLED means that it was stopped, or vanished without a word; the next run takes up its work.
"""
# without this, MLflow's page opens with tools for chat models
TRAINING_PAGES = "workflowType=machine_learning"
VIEW_TAG = "mlflow.sharedViewState."  # followed by the view's key
# smaller is better; MLflow leaves out a column that no run has
DISTANCES = ("fd_efficientnet_lite0_32px", "fd_efficientnet_lite0_224px", "fid_inception")
DURATION = "attributes.`Duration`"
# the columns' ids in MLflow's table, and their widths in pixels
FIRST_COLUMNS = {"attributes.`Run Name`": 260, "runDateAndNestInfo": 140, "duration": 80}
MARGIN, LETTER, NARROWEST = 20, 7, 11  # pixels around a name; pixels per letter; letters in the narrowest column
HEADLINES = (*DISTANCES, "class_accuracy", "validation_loss")  # the metrics by which pipelines are compared


PIPELINES, TRAININGS = "pipelines", "trainings"  # keys of the views


def view(name: str, metrics: Sequence[str], params: Sequence[str], tags: Sequence[str], search: str = "") -> str:
    """Return a saved view as MLflow's pages write it: columns from left to right, and a search expression for runs."""
    kinds = {"metrics": metrics, "params": params, "tags": tags}
    names = {f"{kind}.`{name}`": name for kind, columns in kinds.items() for name in columns}
    widths = {column: MARGIN + LETTER * max(len(name), NARROWEST) for column, name in names.items()}
    state = {
        "searchFilter": search,
        "selectedColumns": [DURATION, *names],
        "columnOrder": [*FIRST_COLUMNS, *names],
        "columnWidths": FIRST_COLUMNS | widths,
    }
    now = time.time_ns() // 1_000_000
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})


def experiment_tags() -> dict[str, str]:
    """Return the tags that the experiment gets. People may change them in MLflow's pages."""
    trainings = ("validation_loss", "gradient_norm", "parameters")
    return {
        DESCRIPTION_TAG: DESCRIPTION,
        VIEW_TAG + PIPELINES: view("Pipelines", HEADLINES, ["data", "models"], ["git.commit"]),
        VIEW_TAG + TRAININGS: view(
            "Trainings", trainings, ["train_on"], ["stage.key", "git.commit"], search="tags.stage LIKE 'train@%'"
        ),
    }


def address(tracking_uri: str) -> str:
    """Return the address of a store's pages: the server's, without user and password, or that of ``tokenbridge ui``."""
    if not is_server(tracking_uri):
        return "http://{}:{}".format(*LOCAL_ADDRESS)
    return public_uri(tracking_uri).rstrip("/")


def public_uri(text: str) -> str:
    """Return a URI, or a text with URIs, without users and passwords."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def is_server(tracking_uri: str) -> bool:
    return tracking_uri.startswith("http")


def runs_page(tracking_uri: str, experiment: str) -> str:
    """Return the address of the experiment's runs, in the view of pipelines."""
    page = f"{address(tracking_uri)}/#/experiments/{experiment}/runs"
    return f"{page}?{TRAINING_PAGES}&viewStateShareKey={PIPELINES}"


def run_page(tracking_uri: str, experiment: str, run: str) -> str:
    return f"{address(tracking_uri)}/#/experiments/{experiment}/runs/{run}?{TRAINING_PAGES}"


def version_page(tracking_uri: str, model: str, number: int) -> str:
    """Return the address of a version of a registered model."""
    return f"{address(tracking_uri)}/#/models/{quote(model)}/versions/{number}?{TRAINING_PAGES}"
