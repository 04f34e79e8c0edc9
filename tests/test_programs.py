"""Programs that are missing on a machine: installed, or skipped by name, or an error in CI."""

from pathlib import Path

import pytest

from tests.support import programs
from tests.support.programs import Program

TESTS = """
from tests.support.programs import require, require_rights

def test_of_what_is_there():
    assert require("hammer").name == "hammer"

def test_of_nails():
    require("nailgun")

def test_of_more_nails():
    require("nailgun")

def test_as_root():
    require_rights()
"""
APT_GET = """#!/bin/sh
echo "$@" >> {folder}/asked
case "$*" in *install*nails) cp {folder}/hammer {folder}/nailgun;; esac
"""
PROGRAMS = (Program("hammer", "tools", "work"), Program("nailgun", "nails", "nails"))
MISSING = "nailgun is not installed: apt-get install nails, or what your system calls it"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The whole PATH of a machine that has a hammer and no nailgun."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write(folder / "hammer", "#!/bin/sh\n")
    monkeypatch.setattr(programs, "PROGRAMS", PROGRAMS)
    monkeypatch.setattr(programs, "has_rights", lambda: True)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("CI", raising=False)
    return folder


def write(path: Path, script: str) -> None:
    path.write_text(script)
    path.chmod(0o755)


@pytest.fixture
def run(pytester: pytest.Pytester) -> pytest.RunResult:
    pytester.makepyfile(TESTS)
    return pytester.runpytest_inprocess("-p", "tests.support.programs", "-ra")


def test_without_a_program_its_tests_are_skipped_and_named_at_the_end(run: pytest.RunResult) -> None:
    run.assert_outcomes(passed=2, skipped=2)
    run.stdout.fnmatch_lines(["*= not tested =*", f"nails (2 skipped): {MISSING}"])
    run.stdout.fnmatch_lines([rf"SKIPPED [[]2[]] *: {MISSING}"])


class TestWithoutRights:
    @pytest.fixture(autouse=True)
    def rights(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(programs, "has_rights", lambda: False)

    def test_what_needs_them_is_skipped_too(self, run: pytest.RunResult) -> None:
        run.assert_outcomes(passed=1, skipped=3)
        run.stdout.fnmatch_lines(["full disks, and jobs on Slurm (1 skipped): *root may"])


class TestWithEverything:
    @pytest.fixture(autouse=True)
    def nailgun(self, folder: Path) -> None:
        write(folder / "nailgun", "#!/bin/sh\n")

    def test_nothing_is_skipped_and_nothing_reported(self, run: pytest.RunResult) -> None:
        run.assert_outcomes(passed=4)
        run.stdout.no_fnmatch_line("*not tested*")

    def test_nothing_is_installed(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        programs.install()
        assert capfd.readouterr().out == ""


class TestInCI:
    @pytest.fixture(autouse=True)
    def ci(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CI", "true")

    def test_a_missing_program_is_an_error(self, run: pytest.RunResult) -> None:
        run.assert_outcomes(passed=2, failed=2)
        run.stdout.fnmatch_lines([f"{MISSING}. In CI nothing is skipped."])

    def test_so_it_is_before_the_tests(self) -> None:
        with pytest.raises(SystemExit, match=MISSING):
            programs.install()


class TestWithAptGet:
    @pytest.fixture(autouse=True)
    def apt_get(self, folder: Path) -> None:
        write(folder / "apt-get", APT_GET.format(folder=folder))

    def test_root_gets_what_is_missing(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.geteuid", lambda: 0)
        programs.install()
        asked = (folder / "asked").read_text().splitlines()
        assert asked == ["-q update", "-q install --yes --no-install-recommends nails"]
        assert programs.require("nailgun") == folder / "nailgun"

    def test_others_are_reported(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        programs.install()
        assert capfd.readouterr().out == f"Tests that need these programs will be skipped:\n  {MISSING}\n"
        assert not (folder / "asked").exists()
