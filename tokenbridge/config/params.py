"""Compose conf/, written by hand, into params.yaml, which DVC and every stage read; check both against the schema."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tokenbridge.base.files import atomic_write_text
from tokenbridge.config import Config, ConfigError, require
from tokenbridge.config.types import did_you_mean

PARAMS_FILE = "params.yaml"
UNREADABLE = (YAMLError, OmegaConfBaseException, ValueError, RecursionError)  # what a broken YAML file raises


def validate(composed: DictConfig) -> Config:
    """Check types, unknown keys and ranges.

    Raises:
        ConfigError: if one is wrong; the message names the key and what it should be.
    """
    missing = OmegaConf.missing_keys(composed)
    require(not missing, f"no value for {', '.join(sorted(missing))}: set it in conf/ or on the command line")
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {_brief(error)}") from error
    assert isinstance(values, dict)
    return Config(**{str(name): value for name, value in values.items()})


def compose_config(overrides: Sequence[str] = (), conf_dir: Path = Path("conf")) -> DictConfig:
    """Compose conf/ with Hydra overrides and resolve every interpolation.

    Raises:
        ConfigError: if an override names no setting or group, or gives a value that cannot work.
    """
    from hydra import compose, initialize_config_dir  # slow to import, and stages only read params.yaml
    from hydra.errors import HydraException

    from tokenbridge.config.overrides import check_single, read_overrides

    require(conf_dir.is_dir(), f"there is no folder {conf_dir.absolute()}: change into a clone of the project")
    check_single(read_overrides(overrides), conf_dir)
    try:
        with initialize_config_dir(str(conf_dir.resolve()), version_base=None):
            composed = compose("config", overrides=list(overrides))
        _refuse_environment(composed)
        OmegaConf.resolve(composed)
    except ConfigError:
        raise
    except (HydraException, *UNREADABLE) as error:
        unknown = re.search(r"Could not override '([\w.]+)'", str(error))
        guess = did_you_mean(Config, unknown[1].split(".")) if unknown else ""
        raise ConfigError(f"{_brief(error).rstrip('.')}{guess} ({conf_dir} names every setting and choice)") from error
    validate(composed)
    return composed


def _refuse_environment(composed: DictConfig) -> None:
    """Refuse values of environment variables, because params.yaml and MLflow would record them, secrets too."""
    taken = re.search(r"\$\{oc\.env:\s*([^,}]*)", OmegaConf.to_yaml(composed))
    name = taken and taken[1]
    require(taken is None, f"a setting takes ${{oc.env:{name}}}, which params.yaml would record: write the value")


def _brief(error: Exception) -> str:
    """Return the message in one line, without search paths and advice to add keys, which the schema refuses."""
    text = re.split(r"\n(?:Config search path|To append|See https:|\s+full_key:)", str(error))[0]
    return " ".join(text.split())


def write_params(overrides: Sequence[str] = (), root: Path = Path()) -> Config:
    """Write root/params.yaml from root/conf, byte for byte as ``dvc exp run`` would."""
    composed = compose_config(overrides, root / "conf")
    atomic_write_text(root / PARAMS_FILE, OmegaConf.to_yaml(composed))
    return validate(composed)


def load_params(root: Path = Path(), changes: Sequence[str] = ()) -> Config:
    """Read root/params.yaml as a checked ``Config``, with unsaved ``changes`` such as ``promotion.seconds=60``."""
    path = root / PARAMS_FILE
    require(path.exists(), f"{path} is missing: run `tokenbridge params` to compose it from conf/")
    try:
        loaded = OmegaConf.load(path)
        require(isinstance(loaded, DictConfig), "it is not a mapping")
        validate(DictConfig(loaded))
    except ConfigError as error:
        remedy = "if another version wrote it, compose it again by `tokenbridge params`"
        raise ConfigError(f"{error}\n{path} does not fit: {remedy}") from error
    except UNREADABLE as error:
        remedy = "compose it again by `tokenbridge params`, or bring it back with git"
        raise ConfigError(f"{path} cannot be read ({_brief(error)}): {remedy}") from error
    for change in changes:
        recipe = f"{change!r} changes no model, because each has its own recipe: set models.<name>.{change}"
        require(not change.startswith("train."), recipe)
        try:
            loaded = OmegaConf.merge(loaded, OmegaConf.from_dotlist([change]))
        except UNREADABLE as error:
            raise ConfigError(f"{change!r} cannot be read ({_brief(error)}): write setting=value") from error
    return validate(DictConfig(loaded))


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted keys, the form that MLflow shows."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
