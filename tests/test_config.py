"""The settings: conf/ composes to the committed params.yaml, and every mistake is named."""

import pickle
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.support.checkout import CHECKOUT
from tokenbridge.config import Config, ConfigError
from tokenbridge.config.model import SamplingSettings
from tokenbridge.config.params import PARAMS_FILE, compose_config, flatten, load_params, validate, write_params

CONF = CHECKOUT / "conf"
CHOICES = [f"{group}={path.stem}" for group in ("experiment", "launcher") for path in (CONF / group).glob("*.yaml")]


def composed(*overrides: str) -> Config:
    return validate(compose_config(overrides, CONF))


def test_params_yaml_is_what_conf_composes_to() -> None:
    text = OmegaConf.to_yaml(compose_config(conf_dir=CONF))
    assert (CHECKOUT / "params.yaml").read_text() == text, "run `make params` and commit params.yaml"


@pytest.mark.parametrize("choice", sorted(CHOICES))
def test_every_experiment_and_launcher_is_valid(choice: str) -> None:
    assert composed(choice)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("train.batch_size=none", "train.batch_size"),
        ("train.batch_size=-1", "must be greater than 0"),
        ("train.precision=fp16", "bf16, fp32"),
        ("train.warmup_epochs=1000", "exceeds train.epochs"),
        ("train.label_dropout=1.5", r"\[0.0, 1.0\]"),
        ("quantizer.levels=1", r"\[2, 256\]"),
        ("quantizer.order=given", "given_order"),
        ("generate.guidance_scale=0.5", "guidance_scale"),
        ("generate.guidance_schedule=square", "linear"),
        ("data.num_classes=9", "label_names has 10"),
        ("evaluate.inception_reference=stats.npz", "inception_weights"),
        ("models.tiny.heads=7", "multiple"),
        ("launcher.kind=cloud", "local, slurm"),
        ("launcher.strategy=zero", "ddp, fsdp"),
        ("launcher.keep_checkpoints=0", "must be greater than 0"),
        ("launcher.max_restarts=-1", "0 is the least"),
        ("launcher.nodes=2", "launcher=local has 1"),
        ("launcher.kind=slurm", "launcher=slurm"),
        ("+unknown=1", "unknown"),
        ("+train.unknown=1", "unknown"),
    ],
)
def test_mistakes_are_named(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        composed(*overrides.split())


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)seed is 'x'.*vae.loss.l1 is missing.*launcher.processes is 0"):
        composed("launcher.processes=0", "seed=x", "~vae.loss.l1")


@pytest.mark.parametrize(
    ("launcher", "override", "message"),
    [
        ("slurm", "slurm.time=86400", "in quotes"),
        ("slurm", "slurm.gpus_per_node=4", "each needs a GPU of its own"),
        ("slurm", 'slurm.options=["qos=high"]', "--name=value"),
        ("slurm", "slurm.signal_seconds=0", "greater than 0"),
    ],
)
def test_what_no_cluster_takes_is_refused(launcher: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config([f"launcher={launcher}", f"launcher.{override}"], CONF)


def test_numbers_are_read_as_they_are_written() -> None:
    config = composed("train.learning_rate='1e-4'", "train.epochs=2", "data.label_names=[0,1,2,3,4,5,6,7,8,9]")
    assert (config.train.learning_rate, config.train.epochs) == (1e-4, 2.0)
    assert config.data.label_names == list("0123456789")


def test_params_of_another_version_say_what_is_missing(tmp_path: Path) -> None:
    settings = OmegaConf.load(CHECKOUT / PARAMS_FILE)
    del settings.encode.precision
    settings.train.old = 1
    OmegaConf.save(settings, tmp_path / PARAMS_FILE)
    with pytest.raises(ConfigError) as caught:
        load_params(tmp_path)
    assert str(caught.value).splitlines() == [
        "encode.precision is missing: set it in conf/ and run `tokenbridge params`",
        "train.old is no setting",
    ]


def test_several_models_share_the_recipe() -> None:
    config = composed("model=[tiny,base]", "train.epochs=2")
    assert list(config.models) == ["tiny", "base"]
    assert {model.train.epochs for model in config.models.values()} == {2}


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "conf").symlink_to(CONF)
    written = write_params(["experiment=smoke"], tmp_path)
    assert written == load_params(tmp_path) == pickle.loads(pickle.dumps(written))


def test_missing_params_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokenbridge params"):
        load_params(tmp_path)


def test_a_constructor_names_mistakes_too() -> None:
    with pytest.raises(ConfigError, match=r"^top_p is 2: must be less than or equal to 1$"):
        SamplingSettings(top_p=2)


def test_nested_settings_become_dotted() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
