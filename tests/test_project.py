"""The project is found from every folder below it."""

from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from tokenbridge.config import ConfigError
from tokenbridge.config.project import enter_project, find_project, here


@pytest.fixture
def below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project/docs/images"
    folder.mkdir(parents=True)
    (tmp_path / "project/conf").mkdir()
    (tmp_path / "project/dvc.yaml").touch()
    monkeypatch.chdir(folder)
    return folder


def test_a_name_that_no_file_can_have_is_refused_at_once() -> None:
    with pytest.raises(ArgumentTypeError, match=r"aaa\.\.\. is longer than 255 bytes: choose a shorter name"):
        here(f"folder/{'a' * 300}")


def test_commands_in_a_subfolder_work_in_the_project_and_their_paths_stay_right(below: Path) -> None:
    picture, absolute, out = here("picture.png"), here("/elsewhere/picture.png"), here("../../../out")
    enter_project()
    assert Path.cwd() == below.parents[1]
    assert picture == Path("docs/images/picture.png")
    assert absolute == Path("/elsewhere/picture.png")
    assert out.resolve() == below.parents[2] / "out"
    assert here("picture.png") == Path("picture.png")


def test_outside_of_a_project_paths_stay_and_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    enter_project()
    assert here("picture.png") == Path("picture.png")
    with pytest.raises(ConfigError, match=f"{tmp_path} is in no clone of the project"):
        find_project()
    assert list(tmp_path.iterdir()) == []
