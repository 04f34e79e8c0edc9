"""Changes of settings as they are written on a command line, such as ``train.epochs=2``: Hydra's overrides.

Every override goes through ``read_overrides``. Hydra's own messages name neither the setting nor the way to write it.
"""

import itertools
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from tokenbridge.base.checks import ConfigError, require

FORM = "write setting=value, such as train.epochs=2"
LONGEST = 200  # characters of an override that a message shows
MOST = 1000  # combinations of a sweep


def read_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides.

    Raises:
        ConfigError: if one cannot be read, or is Hydra's own setting. The message says how to write it.
    """
    return [_read(text) for text in overrides]


def _read(text: str) -> Override:
    shown = repr(text[:LONGEST])
    try:
        override = _parse(text)
    except (HydraException, RecursionError) as error:
        raise ConfigError(f"{shown} cannot be read: {_how_to_write(text)}") from error
    except ValueError as error:  # Python's limit for integers
        raise ConfigError(f"{shown} ... has a number of too many digits: write a smaller one") from error
    group = re.split(r"[./]", override.key_or_group)[0]
    require(group != "", f"{shown} names no setting: {FORM}")
    require(group != "hydra", f"{shown}: settings of Hydra itself have no effect here; leave it out")
    return override


def _parse(text: str) -> Override:
    (override,) = OverridesParser.create().parse_overrides([text])
    return override


def _how_to_write(text: str) -> str:
    """Return advice for an override that the parser refuses."""
    key, _, value = text.partition("=")
    meant = str(Path(value).expanduser()) if value.startswith("~/") or value == "~" else value
    quoted = f"{key}={QuotedString(meant, Quote.double).with_quotes()}"
    with suppress(HydraException):
        if value.isprintable() and len(text) <= LONGEST and value:
            return f"quote the value of {_parse(quoted).key_or_group}, as in {shlex.quote(quoted)}"
    return FORM


def check_single(overrides: Sequence[Override], groups: Path) -> None:
    """Check that each override gives one value, and that a group of settings is given the names of files.

    Args:
        groups: the folder conf/, in which each group is a folder with a file for each choice.

    Raises:
        ConfigError: if not.
    """
    for override in overrides:
        name, shown = override.key_or_group, repr(override.input_line)
        several = f'give one; for a list write {name}=[...]; for a text that holds a comma write {name}="..." in quotes'
        require(not override.is_sweep_override(), f"{shown} gives several values: {several}")
        if (folder := groups / name).is_dir() and not override.is_delete():
            choices = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
            given = override.value()
            named = isinstance(given, str) or (isinstance(given, list) and all(isinstance(each, str) for each in given))
            require(named and given != [], f"{shown} chooses nothing: {name} must be one of {choices}")


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Return every combination of overrides that name several values as in Hydra: ``seed=0,1``, ``seed=range(0,4)``.

    Raises:
        ConfigError: if an override cannot be read, or there are too many combinations.
    """
    parsed = read_overrides(overrides)
    choices = [_values(item) if item.is_sweep_override() else [str(item.input_line)] for item in parsed]
    found = list(itertools.islice(itertools.product(*choices), MOST + 1))
    require(len(found) <= MOST, f"{' '.join(overrides)[:LONGEST]} makes more than {MOST:,} combinations: name fewer")
    return [list(combination) for combination in found]


def _values(override: Override) -> list[str]:
    try:
        values = list(itertools.islice(override.sweep_string_iterator(), MOST + 1))
    except (HydraException, ArithmeticError, ValueError) as error:
        advice = f"list them, as in {override.key_or_group}=0,1, or write range(0,4)"
        raise ConfigError(f"{override.input_line!r} cannot be listed: {advice}") from error
    return [f"{override.get_key_element()}={value}" for value in values]
