"""What programs and their children get of the environment."""

import getpass
import os
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenbridge.base.environment import cleaned, of_a_command

CHOICES = {"CUDA_VISIBLE_DEVICES": "0", "HF_HOME": "/hf", "GIT_SSH_COMMAND": "ssh -i key", "AWS_PROFILE": "team"}


@pytest.mark.parametrize(
    "name", ["GIT_DIR", "GIT_CONFIG_COUNT", "RANK", "SHELL", "PYTHONWARNINGS", "MLFLOW_EXPERIMENT_ID", "PET_NNODES"]
)
def test_variables_of_other_programs_are_removed_and_the_users_choices_stay(name: str) -> None:
    ours = cleaned(CHOICES | {name: "x", f"MY_{name}": "mine"})
    assert ours.items() >= (CHOICES | {f"MY_{name}": "mine"}).items()
    assert name not in ours


def test_a_command_does_not_take_itself_for_part_of_the_stage_that_starts_it() -> None:
    """Records of its stages would go to the other checkout, which DVC_ROOT names."""
    assert "DVC_ROOT" in cleaned({"DVC_ROOT": "/elsewhere"})
    assert "DVC_ROOT" not in of_a_command({"DVC_ROOT": "/elsewhere"})


@pytest.mark.parametrize("before", [{}, {"no_proxy": "example.org, localhost"}, {"NO_PROXY": "example.org"}])
def test_servers_of_this_machine_need_no_proxy(before: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = cleaned(before | {"http_proxy": "http://127.0.0.1:9"})
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    for host in ("127.0.0.1:5000", "localhost:4200", *(["example.org"] if before else [])):
        assert urllib.request.proxy_bypass(host)
    assert not urllib.request.proxy_bypass("example.com")
    assert ours["no_proxy"] == ours["NO_PROXY"]


def test_a_user_id_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC, MLflow and torch ask for it, as in a container that runs with ``--user``."""

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert cleaned({})["USER"] == f"uid-{os.getuid()}"


@given(st.dictionaries(st.text("ADEGINORPRTVX_no", min_size=1), st.text()))
def test_cleaning_again_changes_nothing(variables: dict[str, str]) -> None:
    assert cleaned(cleaned(variables)) == cleaned(variables)
