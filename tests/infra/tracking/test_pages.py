"""Addresses in MLflow's pages, and the views in the form that those pages read."""

import json

import pytest

from tokenbridge.infra.tracking.pages import TRAININGS, VIEW_TAG, experiment_tags, public_uri, run_page, version_page


def test_a_servers_address_has_no_password_in_it() -> None:
    page = run_page("https://ann:secret@mlflow.example.org/lab/", "3", "abc")
    assert page == "https://mlflow.example.org/lab/#/experiments/3/runs/abc?workflowType=machine_learning"


@pytest.mark.parametrize(
    "uri", ["https://ann:secret@host/lab", "postgresql+psycopg2://ann:secret@host:5432/mlflow?x=1"]
)
def test_a_public_uri_has_no_password(uri: str) -> None:
    assert public_uri(uri) == uri.replace("ann:secret@", "")


def test_a_database_is_shown_by_our_own_server() -> None:
    page = version_page("sqlite:////tmp/mlflow.db", "tokenbridge-data-tiny", 2)
    assert page.startswith("http://127.0.0.1:5000/#/models/tokenbridge-data-tiny/versions/2?")


def test_a_view_selects_its_columns_in_their_order() -> None:
    tag = json.loads(experiment_tags()[VIEW_TAG + TRAININGS])
    state = json.loads(tag["state"])
    assert tag["name"] == "Trainings"
    metrics = ["validation_loss", "gradient_norm", "parameters"]
    assert state["selectedColumns"][1:4] == [f"metrics.`{name}`" for name in metrics]
    assert state["columnOrder"][-6:] == state["selectedColumns"][-6:]
    assert state["searchFilter"] == "tags.stage LIKE 'train@%'"
