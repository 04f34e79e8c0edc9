"""The settings: conf/ composes to the committed params.yaml, and mistakes are named."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.support.checkout import CHECKOUT
from tokenbridge.config import ConfigError
from tokenbridge.config.params import compose_config, flatten, load_params, validate, write_params

CONF = CHECKOUT / "conf"


def test_params_yaml_is_what_conf_composes_to() -> None:
    composed = OmegaConf.to_yaml(compose_config(conf_dir=CONF))
    assert (CHECKOUT / "params.yaml").read_text() == composed, "run `make params` and commit params.yaml"


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_is_valid(experiment: str) -> None:
    validate(compose_config([f"experiment={experiment}"], CONF))


@pytest.mark.parametrize(
    ("override", "message"),
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
        ("launcher.kind=cloud", "local, slurm, kubernetes"),
        ("launcher.strategy=zero", "ddp, fsdp"),
        ("launcher.keep_checkpoints=0", "must be greater than 0"),
        ("launcher.max_restarts=-1", "0 is the least"),
        ("launcher.nodes=2", "launcher=local has 1"),
        ("launcher.kind=slurm", "launcher=slurm"),
        ("+unknown=1", "unknown"),
        ("+train.unknown=1", "unknown"),
    ],
)
def test_bad_values_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config([override], CONF)


@pytest.mark.parametrize("launcher", sorted(path.stem for path in (CONF / "launcher").glob("*.yaml")))
def test_every_launcher_is_valid(launcher: str) -> None:
    config = validate(compose_config([f"launcher={launcher}", "launcher.processes=4"], CONF))
    assert config.launcher.processes == 4


@pytest.mark.parametrize(
    ("launcher", "override", "message"),
    [
        ("slurm", "slurm.time=86400", "in quotes"),
        ("slurm", "slurm.gpus_per_node=4", "each needs a GPU of its own"),
        ("slurm", 'slurm.options=["qos=high"]', "--name=value"),
        ("slurm", "slurm.signal_seconds=0", "greater than 0"),
        ("kubernetes", "kubernetes.mount=data", "absolute"),
        ("kubernetes", "kubernetes.namespace=My_Space", "lower-case"),
    ],
)
def test_what_no_cluster_takes_is_refused(launcher: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config([f"launcher={launcher}", f"launcher.{override}"], CONF)


def test_unknown_keys_and_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match="lrr"):
        compose_config(["train.lrr=1"], CONF)
    with pytest.raises(ConfigError, match="gigantic"):
        compose_config(["model=gigantic"], CONF)


def test_several_models_share_the_recipe() -> None:
    config = validate(compose_config(["model=[tiny,base]", "train.epochs=2"], CONF))
    assert list(config.models) == ["tiny", "base"]
    assert {model.train.epochs for model in config.models.values()} == {2}


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "conf").symlink_to(CONF)
    assert write_params(["experiment=smoke"], tmp_path) == load_params(tmp_path)


def test_missing_params_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokenbridge params"):
        load_params(tmp_path)


def test_nested_settings_become_dotted() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
