"""The documentation: its commands are ones that exist, and its links lead somewhere."""

import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.checkout import CHECKOUT
from tokenbridge.cli import build_parser
from tokenbridge.config.params import compose_config

PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md")])
TARGETS = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.M))
COMPOSED = ("repro", "params", "plan")  # commands of tokenbridge that take Hydra overrides


def commands(page: Path) -> list[list[str]]:
    """The words of each command in the page's bash blocks, without environment variables and the folder of the venv."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", re.sub(r"(^|\s)#.*", "", line)):
                words = shlex.split(part)
                while words and re.match(r"\w+=", words[0]):
                    words.pop(0)
                if words:
                    found.append([words[0].removeprefix(".venv/bin/"), *words[1:]])
    return found


def overrides_of(words: list[str]) -> list[str]:
    return [word for word in words if re.match(r"[\w.+/]+=", word)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_accepted(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    for words in commands(page):
        match words:
            case ["make", *arguments]:
                assert {word for word in arguments if "=" not in word} <= TARGETS, words
            case ["tokenbridge", *arguments] | ["python", "-m", "tokenbridge.cli", *arguments]:
                build_parser().parse_args(arguments)  # exits if it does not accept them
                if arguments and arguments[0] in COMPOSED:
                    compose_config(overrides_of(arguments))
            case ["dvc", "exp", "run", *arguments]:
                compose_config(overrides_of(arguments))
            case ["python", "-m", module, *_]:
                assert find_spec(module), words


def test_the_pages_have_commands() -> None:
    """Guards the test above: a page whose blocks are not found would pass it."""
    assert {words[0] for page in PAGES for words in commands(page)} >= {"make", "tokenbridge", "dvc", "python"}


@pytest.mark.parametrize("page", sorted(CHECKOUT.glob("*.md")), ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (CHECKOUT / target).exists(), target


@pytest.mark.pipeline  # for its time alone
def test_the_site_has_no_dead_link(tmp_path: Path) -> None:
    for name in ("docs", "tokenbridge", "flows"):
        shutil.copytree(CHECKOUT / name, tmp_path / name)
    shutil.copy2(CHECKOUT / "mkdocs.yml", tmp_path)
    built = subprocess.run(["zensical", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "DimensionwiseQuantizer" in (tmp_path / "site/api/method/index.html").read_text()


def test_every_promise_of_the_reliability_page_names_its_tests() -> None:
    rows = [row for row in (CHECKOUT / "docs/reliability.md").read_text().splitlines() if row.startswith("| ")]
    for row in rows:
        if row.startswith("| fault"):
            continue
        files = [CHECKOUT / name for name in re.findall(r"tests/[\w/]+\.py", row)]
        assert files, row
        source = "".join(file.read_text() for file in files)
        for name in re.findall(r"\btest_\w+\b(?!\.py)", row):
            assert f"def {name}(" in source, row
