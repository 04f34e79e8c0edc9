"""The command line's help against what the code does."""

from dataclasses import fields

import pytest

from tokenbridge.cli import main
from tokenbridge.sampling.sampler import MOST_DEFAULT_STEPS, SamplingSettings


@pytest.mark.parametrize("command", ["sample", "edit"])
def test_the_help_tells_the_defaults_of_the_sampling_settings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for field in fields(SamplingSettings):
        entry = shown[shown.rindex("--" + field.name.replace("_", "-")) :]
        default = MOST_DEFAULT_STEPS if field.name == "steps" else field.default
        told = " ".join(f"{value:g}" for value in default) if isinstance(default, tuple) else default
        told = told if isinstance(told, str) else f"{told:g}"
        assert f"default: {told}" in entry.split(" --")[0]
