"""The command line's help against what the code does."""

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenbridge.cli import main
from tokenbridge.config.model import MAX_DEFAULT_STEPS, SamplingSettings


@pytest.mark.parametrize("command", ["sample", "edit"])
def test_the_help_tells_the_defaults_of_the_sampling_settings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for field in fields(SamplingSettings):
        entry = shown[shown.rindex("--" + field.name.replace("_", "-")) :]
        of_the_trunk = {"steps": MAX_DEFAULT_STEPS, "order": "the order of the model"}
        default = of_the_trunk.get(field.name, field.default)
        default = "off" if default is False else default
        expected = " ".join(f"{value:g}" for value in default) if isinstance(default, tuple) else default
        expected = expected if isinstance(expected, str) else f"{expected:g}"
        assert f"default: {expected}" in entry.split(" --")[0]


COMMANDS = ["sample", "edit --image=x --class=0", "export", "import tokenbridge", "params", "storage", ""]
OPTIONS = ["--model=x", "--seed", "--count", "--steps", "--top-p", "--guidance-interval", "--out", "--keep=left"]
WORDS = ["", "-", "--", "=", "-1", "0", "1.5", "1e400", "inf", "nan", "9" * 5000, f"{'a' * 300}.png", "x.png", "\udce9"]


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    command=st.sampled_from(COMMANDS),
    arguments=st.lists(st.sampled_from(OPTIONS + WORDS) | st.text(max_size=9), max_size=4),
)
def test_any_arguments_end_with_a_line_about_them(
    command: str,
    arguments: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is no model, no conf/ and no params.yaml."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), *arguments])
    shown = capfd.readouterr().err
    if stop.value.code != 0:  # not --help
        assert shown.splitlines()[-1].startswith("tokenbridge")
        assert len(shown.splitlines()[-1]) < 1000
        assert "log: " not in shown
        assert "Traceback" not in shown
