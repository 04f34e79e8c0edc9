import stat
import subprocess
from pathlib import Path

import pytest
from native.settings import SECRETS, Settings, read_env, secret_names

from tokenbridge.base.errors import UserError


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    first = Settings.load(tmp_path)
    again = Settings.load(tmp_path)
    made = {name: first[name] for name in secret_names()}
    assert made == {name: again[name] for name in secret_names()}
    assert len(set(made.values())) == len(made)
    assert min(map(len, made.values())) >= 32
    assert stat.S_IMODE((tmp_path / SECRETS).stat().st_mode) == 0o600


def test_a_new_secret_joins_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / SECRETS).write_text("POSTGRES_PASSWORD=mine\n")
    Settings.load(tmp_path)
    kept = read_env(tmp_path / SECRETS)
    assert kept["POSTGRES_PASSWORD"] == "mine"
    assert kept.keys() == secret_names()


def test_the_environment_goes_before_the_private_file_and_that_before_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_PORT", raising=False)
    assert Settings.load(tmp_path)["MLFLOW_PORT"] == "5000"
    (tmp_path / SECRETS).write_text("MLFLOW_PORT=5001\n")
    assert Settings.load(tmp_path)["MLFLOW_PORT"] == "5001"
    monkeypatch.setenv("MLFLOW_PORT", "5002")
    assert Settings.load(tmp_path)["MLFLOW_PORT"] == "5002"


@pytest.mark.parametrize("port", ["80a", "0", "65536", ""])
def test_a_port_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("S3_PORT", port)
    with pytest.raises(UserError, match="S3_PORT is"):
        Settings.load(tmp_path)


def test_a_misspelt_setting_is_refused(tmp_path: Path) -> None:
    (tmp_path / SECRETS).write_text("MLFLOW_PRT=5001\n")
    with pytest.raises(UserError, match="MLFLOW_PRT"):
        Settings.load(tmp_path)


def test_a_line_that_sets_nothing_is_named_without_what_may_be_a_secret(tmp_path: Path) -> None:
    (tmp_path / SECRETS).write_text("POSTGRES_PASSWORD abc\n")
    with pytest.raises(UserError, match=r"POSTGRES_PASSWORD \.\.\.$"):
        Settings.load(tmp_path)


def test_a_secret_that_supervisor_cannot_pass_on_is_refused(tmp_path: Path) -> None:
    (tmp_path / SECRETS).write_text('S3_SECRET_KEY=a"b\n')
    with pytest.raises(UserError, match="S3_SECRET_KEY has a quotation mark"):
        Settings.load(tmp_path)


def test_no_setting_runs_as_a_command_in_the_shell_of_a_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBLIC_HOST", "$(touch made); touch made")
    monkeypatch.chdir(tmp_path)
    settings = Settings.load(tmp_path / "home")
    settings.write_client_env()
    shown = subprocess.check_output(["sh", "-c", '. home/client.env; echo "$MLFLOW_TRACKING_URI"'], text=True)
    assert shown.strip() == settings.client_variables()["MLFLOW_TRACKING_URI"]
    assert not (tmp_path / "made").exists()
