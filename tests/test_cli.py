"""The command line's help against what the code does."""

from dataclasses import fields

import pytest

from tokenbridge.cli import main
from tokenbridge.config.model import MAX_DEFAULT_STEPS, SamplingSettings


@pytest.mark.parametrize("command", ["sample", "edit"])
def test_the_help_tells_the_defaults_of_the_sampling_settings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for field in fields(SamplingSettings):
        entry = shown[shown.rindex("--" + field.name.replace("_", "-")) :]
        default = MAX_DEFAULT_STEPS if field.name == "steps" else field.default
        expected = " ".join(f"{value:g}" for value in default) if isinstance(default, tuple) else default
        expected = expected if isinstance(expected, str) else f"{expected:g}"
        assert f"default: {expected}" in entry.split(" --")[0]
