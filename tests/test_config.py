"""The settings: conf/ composes to the committed params.yaml, and every mistake is named."""

import pickle
import re
import shlex
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from tests.support.checkout import CHECKOUT
from tokenbridge.config import Config, ConfigError
from tokenbridge.config.overrides import check_single, expand_sweep, read_overrides
from tokenbridge.config.params import PARAMS_FILE, compose_config, flatten, load_params, validate, write_params
from tokenbridge.ops.planning.sizes import meta_model

CONF = CHECKOUT / "conf"


def composed(*overrides: str) -> Config:
    return validate(compose_config(overrides, CONF))


def test_params_yaml_is_what_conf_composes_to() -> None:
    text = OmegaConf.to_yaml(compose_config(conf_dir=CONF))
    assert (CHECKOUT / "params.yaml").read_text() == text, "run `make params` and commit params.yaml"


@pytest.mark.parametrize("path", sorted((CONF / "experiment").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_can_be_built(path: Path) -> None:
    """Its models, on torch's meta device: shapes without memory."""
    config = composed(f"experiment={path.relative_to(CONF / 'experiment').with_suffix('').as_posix()}")
    for model in config.models.values():
        assert meta_model(config, model).head


RELEASED = {  # the released script: 64 images for each of 32 processes
    "batch_size": 2048,
    "optimizer": "adamw",
    "learning_rate": 4e-4,
    "weight_decay": 0.02,
    "beta1": 0.9,
    "beta2": 0.95,
    "warmup_epochs": 100,
    "clip_norm": 3.0,
    "ema_decay": 0.9999,
    "ema_warmup": False,
    "label_dropout": 0.1,
    "mask_ratio_mean": 1.0,
    "mask_ratio_std": 0.25,
    "mask_ratio_min": 0.7,
    "mask_group_size": 64,
    "head_share": 1.0,
}


@pytest.mark.parametrize(("experiment", "name"), [("imagenet_l", "large"), ("imagenet_h", "huge")])
def test_the_large_models_have_the_released_recipe(experiment: str, name: str) -> None:
    model = composed(f"experiment={experiment}").models[name]
    recipe = vars(model.train)
    assert {setting: recipe[setting] for setting in RELEASED} == RELEASED
    assert (model.dropout, model.level_embedding_std, model.head, model.trunk) == (0.1, 1.0, "autoregressive", "masked")


@pytest.mark.parametrize("path", sorted((CONF / "launcher").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_launcher_is_valid(path: Path) -> None:
    assert composed(f"launcher={path.stem}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("train.batch_size=none", "train.batch_size is 'none': must be a valid integer"),
        ("train.batch_size=true", "train.batch_size is True: must be a number"),
        ("train.precision=fp16", "train.precision is 'fp16': must be 'auto', 'bf16' or 'fp32'"),
        ("train.warmup_epochs=1000", "train.warmup_epochs is 1000.0: must be at most train.epochs ("),
        ("train.label_dropout=1.5", "train.label_dropout is 1.5: must be less than or equal to 1"),
        ("quantizer.levels=1", "quantizer.levels is 1: must be greater than or equal to 2"),
        ("quantizer.order=given", "quantizer.given_order is None: give a list exactly if"),
        ("generate.guidance_interval=[0.5]", "generate.guidance_interval is [0.5]: must be [from, to] with from < to"),
        ("generate.steps=17", "generate.steps is 17: must be at most 16, one for each position"),
        ("~generate.samples", "generate.samples is missing: set it in conf/"),
        ("data.num_classes=9", "data.label_names has 10 names: must be as many as data.num_classes (9)"),
        ("evaluate.inception_reference=x.npz", "evaluate.inception_reference is 'x.npz': set evaluate.inception_w"),
        ("models.tiny.heads=7", "models.tiny.width is 160: must be a multiple of heads (7)"),
        ("launcher.nodes=2", "launcher.nodes is 2: must be 1 with launcher=local"),
        ("launcher.kind=slurm", "launcher.slurm is null, and launcher.kind is slurm: set launcher=slurm"),
        ("launcher=slurm launcher.slurm.time=86400", "launcher.slurm.time is '86400': write hours:"),
        ("launcher=slurm launcher.slurm.gpus_per_node=4", "launcher.processes is 8: must be at most launcher.slurm."),
        ('launcher=slurm launcher.slurm.options=["qos=high"]', "launcher.slurm.options has 'qos=high': write --name"),
        ('tokenize.outs=["a;command"]', "tokenize.outs.0 is 'a;command': must be letters, digits"),
        ("data.name=../x", "data.name is '../x': must be letters, digits"),
        ("+models.a$b=${models.tiny}", "is 'a$b': must be letters, digits"),
        ("launcher.gpu_group=-x", "launcher.gpu_group is '-x': must be letters, digits"),
        ("data.licence=${oc.env:HOME}", "takes ${oc.env:HOME}, which params.yaml would record"),
        ("data.mirrors=[{kind:http,location:'http://ann:secret@host/'}]", "data.mirrors.0.location holds a user name"),
        ("+unknown=1", "unknown is no setting"),
        ("+train.lerning_rate=1", "train.lerning_rate is no setting: did you mean learning_rate?"),
        ("train.lerning_rate=1", "'train.lerning_rate': did you mean learning_rate?"),
        ("+models.tiny.train.sed=1", "models.tiny.train.sed is no setting: did you mean seed?"),
        ("train.lrr=1", "train.lrr"),
        ("model=gigantic", "gigantic"),
        ("model=null", "'model=null' chooses nothing: model must be one of base, huge, large, tiny"),
        ("data=null", "'data=null' chooses nothing: data must be one of fashion_mnist, "),
        ("data=7", "'data=7' chooses nothing: data must be one of fashion_mnist, "),
        ("hydra.run.dir=x", "'hydra.run.dir=x': settings of Hydra itself have no effect"),
        ("seed=0,1", "'seed=0,1' gives several values: give one"),
        ("seed=interval(0,1)", "'seed=interval(0,1)' gives several values: give one"),
        (
            "seed=99999999999999999999",
            "must be less than or equal to 9223372036854775807",
        ),
        (f"seed={'9' * 5000}", "has a number of too many digits: write a smaller one"),
        ("train.epochs=1e400", "train.epochs is inf: must be a finite number"),
        ("train.weight_decay=-1", "train.weight_decay is -1: must be greater than or equal to 0"),
        ("train.warmup_epochs=-1", "train.warmup_epochs is -1: must be greater than or equal to 0"),
        ("vae.loss.kl=-1", "vae.loss.kl is -1: must be greater than or equal to 0"),
        ("models.tiny.head_group=99999999", "head_group is 99999999: must divide the 8 slots"),
        (
            "models.tiny.head=parallel models.tiny.draft_depth=1",
            "draft_depth is 1: a parallel head draws a token at once and needs no draft, so set it to null",
        ),
        (
            "generate.speculative=true",
            "generate.speculative is true, but models without a draft are to be sampled (tiny): set their draft_depth",
        ),
        (
            "generate.speculative=true models.tiny.draft_depth=1 generate.guidance_on=output",
            "speculative is true and guidance_on is output: set guidance_on=features",
        ),
        (
            "quantizer=continuous models.tiny.head=mixture generate.guidance_on=output",
            "generate.guidance_on is output, but guidance cannot mix the outputs of mixture heads",
        ),
        (
            "models.tiny.trunk=causal_random train.head_share=0.5",
            "models.tiny.train.head_share is 0.5, but trunk=causal_random learns every position at each step",
        ),
        (
            "models.tiny.trunk=causal_raster generate.order=random",
            "generate.order is random, but a model with trunk=causal_raster knows one order alone: use order=raster",
        ),
        (
            "models.tiny.trunk=causal_raster generate.steps=8",
            "generate.steps is 8, but a model with trunk=causal_raster predicts the next position alone, not 16",
        ),
        (
            "models.tiny.trunk=elements",
            "quantizer.order is frequency: set it to natural, which trunk=elements of tiny needs",
        ),
        (
            "models.tiny.trunk=elements quantizer=codebook quantizer.order=natural",
            "quantizer.family is codebook: choose one of gaussian, uniform, lloyd_max, entropy_coded, continuous",
        ),
        (
            "models.tiny.trunk=elements quantizer.order=natural generate.steps=129",
            "generate.steps is 129: must be at most 128, one for each number",
        ),
        (
            "models.tiny.trunk=elements quantizer.order=natural generate.order=halton",
            "generate.order is halton, an order of positions, but a model with trunk=elements draws single numbers",
        ),
        (
            "models.tiny.trunk=elements quantizer.order=natural models.tiny.head_group=2",
            "head_group is 2, but trunk=elements draws single numbers, so set it to 1",
        ),
        (
            "models.tiny.trunk=elements quantizer.order=natural models.tiny.draft_depth=1",
            "draft_depth is 1, but trunk=elements draws single numbers, so set it to null",
        ),
        (
            "models.tiny.trunk=elements quantizer.order=natural models.tiny.head=bits models.tiny.head_steps=7",
            "models.tiny.head_steps is 7: must be at most 6, the bits it draws at once",
        ),
        (
            "models.tiny.head=flow models.tiny.draft_depth=1",
            "draft_depth is 1: a flow head draws a token at once and needs no draft, so set it to null",
        ),
        (
            "models.tiny.head=flow",
            "quantizer.family is gaussian, so the head of a model must be none of mixture, diffusion",
        ),
        (
            "quantizer=continuous",
            "quantizer.family is continuous, so the head of a model must be one of mixture, diffusion",
        ),
        (
            "quantizer=continuous models.tiny.head=flow generate.top_p=0.9",
            "generate.top_p and order=confidence need the probabilities of levels, which the heads of tiny do not give",
        ),
        (
            "models.tiny.head=bits generate.order=confidence",
            "generate.top_p and order=confidence need the probabilities of levels, which the heads of tiny do not give",
        ),
        (
            "quantizer=continuous models.tiny.head=bits",
            "quantizer.family is continuous, so the head of a model must be one of mixture, diffusion",
        ),
        (
            "models.tiny.head=bits quantizer.levels=48",
            "models.tiny.head is bits, and 48 levels are no whole number of bits: set quantizer.levels",
        ),
        (
            "quantizer=entropy_coded models.tiny.head=bits",
            "head is bits, and 113 levels are no whole number of bits: choose another head or quantizer.family",
        ),
        (
            "quantizer=continuous models.tiny.head=diffusion models.tiny.head_steps=1",
            "head_steps is 1: must be from 2 to 1000 with a diffusion head",
        ),
        (
            "models.tiny.head=bits models.tiny.head_steps=49",
            "models.tiny.head_steps is 49: must be at most 48, the bits it draws at once",
        ),
        (
            "models.tiny.head=bits models.tiny.head_group=2",
            "head_group is 2: only autoregressive and parallel heads have groups, so set it to 1",
        ),
        (
            "models.tiny.head=bits models.tiny.draft_depth=1",
            "draft_depth is 1: a bits head draws a token at once and needs no draft, so set it to null",
        ),
        (
            "quantizer=codebook quantizer.codebooks=3",
            "quantizer.codebooks is 3: must divide the 8 dimensions of a token",
        ),
        (
            "quantizer=codebook models.tiny.head_group=2",
            "models.tiny.head_group is 2: must divide the 1 slots of a token",
        ),
        (
            "quantizer=codebook tokens=packed",
            "tokenize stores indices of a byte at most, and quantizer.family=codebook",
        ),
        (
            "quantizer=e8 vae.dimensions=12",
            "quantizer.family=e8 needs a multiple of 8 dimensions, and a token has 12",
        ),
        (
            "quantizer=entropy_coded quantizer.distortion=1e-4",
            "distortion is 0.0001, which makes 289 levels in +-5: 3 to 256 can be handled, so change distortion",
        ),
        ("quantizer=e8 quantizer.distortion=10", "distortion is 10, which makes 1 levels in +-5: 3 to 256"),
        (
            "quantizer=trained_codebook",
            "vae.codewords is None, but quantizer.family=trained_codebook has quantizer.codewords=1024: set both to",
        ),
        (
            "quantizer=trained_codebook vae.codewords=512",
            "vae.codewords is 512, but quantizer.family=trained_codebook has quantizer.codewords=1024",
        ),
        (
            "vae=vq quantizer=trained_codebook quantizer.codebooks=2",
            "quantizer.codebooks is 2: a trained codebook is one for a whole token",
        ),
        (
            "vae=vq quantizer=trained_codebook quantizer.patch_size=2",
            "quantizer.patch_size is 2: a trained codebook covers one position",
        ),
        (
            "vae=vq quantizer=trained_codebook quantizer.statistics=per_dimension",
            "quantizer.statistics is per_dimension: unequal scales would change which trained codeword is nearest",
        ),
        ("vae=kl16 vae.codewords=64", "vae.codewords is 64, but a vae.pretrained is not trained"),
        ("reconstruct.families=[trained_codebook]", "reconstruct.families.0 is 'trained_codebook': must be 'gaussian'"),
        ("storage.endpoint='http://['", "storage: Invalid IPv6 URL"),
        ("data.root=${data.root}", "Recursive interpolation"),
        ("train.epochs", "'train.epochs' cannot be read: write setting=value, such as train.epochs=2"),
        ("=1", "'=1' names no setting: write setting=value"),
    ],
)
def test_mistakes_are_named(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        composed(*overrides.split())


@pytest.mark.parametrize("path", ["~/images", "/a=b", "/a é", "/a{b}", "/a(b)", "/it's", '/"a"', "/a#b\\", "${x"])
def test_a_path_that_needs_quotes_is_shown_with_them(path: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.root=.*quote the value of data\.root, as in") as caught:
        read_overrides([f"data.root={path}"])
    (written,) = shlex.split(str(caught.value).split("as in ")[1])
    assert read_overrides([written])[0].value() == str(Path(path).expanduser())


def test_a_sweep_is_every_combination() -> None:
    combinations = expand_sweep(["seed=0,1", "train.epochs=range(1,3)", "data.name=x"])
    assert combinations == [[f"seed={a}", f"train.epochs={b}", "data.name=x"] for a in (0, 1) for b in (1, 2)]


@pytest.mark.parametrize("sweep", ["seed=interval(0,1)", "seed=glob(*)", "seed=range(0,10000)", "seed=range(0,1,0)"])
def test_a_sweep_that_cannot_be_listed_is_refused(sweep: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be listed: list them|more than 1,000 combinations"):
        expand_sweep([sweep])


def test_an_option_of_slurm_is_one_line() -> None:
    """The job's script quotes its options in a comment."""
    with pytest.raises(ConfigError, match="must be one line"):
        composed("launcher=slurm", 'launcher.slurm.options=["--qos=high\ncommand"]')


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)seed is 'x'.*vae.loss.l1 is missing.*launcher.processes is 0"):
        composed("launcher.processes=0", "seed=x", "~vae.loss.l1")


def test_a_mistake_in_the_shared_recipe_is_named_once() -> None:
    with pytest.raises(ConfigError) as caught:
        composed("model=[tiny,base]", "train.epochs=0")
    assert str(caught.value) == "train.epochs is 0: must be greater than 0"


def test_numbers_are_read_as_they_are_written() -> None:
    config = composed("train.learning_rate='1e-4'", "train.epochs=2", "data.label_names=[0,1,2,3,4,5,6,7,8,9]")
    assert (config.train.learning_rate, config.train.epochs) == (1e-4, 2.0)
    assert config.data.label_names == list("0123456789")


def test_params_of_another_version_say_what_is_missing(tmp_path: Path) -> None:
    params = OmegaConf.load(CHECKOUT / PARAMS_FILE)
    del params.encode.precision
    params.train.old = 1
    OmegaConf.save(params, tmp_path / PARAMS_FILE)
    with pytest.raises(ConfigError) as caught:
        load_params(tmp_path)
    assert str(caught.value).splitlines() == [
        "encode.precision is missing: set it in conf/ and run `tokenbridge params`",
        "train.old is no setting",
        f"{tmp_path / PARAMS_FILE} does not fit: if another version wrote it, compose it again by `tokenbridge params`",
    ]


def test_several_models_share_the_recipe() -> None:
    config = composed("model=[tiny,base]", "train.epochs=2")
    assert list(config.models) == ["tiny", "base"]
    assert {model.train.epochs for model in config.models.values()} == {2}


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "conf").symlink_to(CONF)
    written = write_params(["experiment=smoke"], tmp_path)
    assert written == load_params(tmp_path) == pickle.loads(pickle.dumps(written))


@pytest.mark.parametrize(
    "content",
    [
        b"<<<<<<< HEAD\nseed: 0\n=======\nseed: 1\n>>>>>>> theirs\n",
        b"seed: [",
        b"\xff\xfe",
        b"a: &a [*a]",
        b"- " * 5000,
        b"[]",
        b"seed: " + b"9" * 5000,
    ],
    ids=lambda content: repr(content[:12]),
)
def test_broken_params_say_how_to_bring_them_back(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PARAMS_FILE).write_bytes(content)
    with pytest.raises(ConfigError, match=r"params.yaml (cannot be read|does not fit).*`tokenbridge params`"):
        load_params(tmp_path)


@pytest.mark.parametrize("change", ["seed", "seed=[", "=", "a..b=1", f"seed={'9' * 5000}"])
def test_an_unsaved_change_that_cannot_be_read_is_named(change: str) -> None:
    with pytest.raises(ConfigError):
        load_params(CHECKOUT, [change])


def test_a_change_of_the_common_recipe_is_refused_because_each_model_has_its_own() -> None:
    with pytest.raises(ConfigError, match=re.escape("set models.<name>.train.epochs=0.1")):
        load_params(CHECKOUT, ["train.epochs=0.1"])


NASTY = ["", "null", "inf", "-inf", "nan", "1e400", "-1", "9" * 5000, "${seed}", "${x", "${oc.env:HOME}", "~/x", "["]
NASTY += ["{a:1}", "0,1", "range(0,1e9)", "interval(0,1)", "'", '"', "\\", "é", "\udce9", "\0"]
TEXT = st.sampled_from(NASTY) | st.text(max_size=20)
VALUES: st.SearchStrategy[object] = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUES |= st.lists(VALUES, max_size=3) | st.dictionaries(st.text(max_size=5), VALUES, max_size=3)
FUZZ = settings(derandomize=True, deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))


@FUZZ
@given(st.lists(st.builds("{}{}{}".format, TEXT, st.sampled_from(["=", "+", ""]), TEXT), max_size=3))
def test_any_override_is_read_or_refused(overrides: list[str]) -> None:
    with suppress(ConfigError):
        check_single(read_overrides(overrides), CONF)
    with suppress(ConfigError):
        assert all(len(combination) == len(overrides) for combination in expand_sweep(overrides))


@settings(FUZZ, max_examples=8)
@given(st.sampled_from(["seed", "data", "data.root", "+models.x", "train.epochs"]), TEXT)
def test_any_value_is_composed_or_refused(key: str, value: str) -> None:
    with suppress(ConfigError):
        compose_config([f"{key}={value}"], CONF)


@pytest.fixture(scope="module")
def default() -> DictConfig:
    return compose_config(conf_dir=CONF)


@FUZZ
@given(st.data(), VALUES)
def test_any_value_is_valid_or_refused(default: DictConfig, data: st.DataObject, value: object) -> None:
    values = OmegaConf.to_container(default)
    place, key = values, ""
    while isinstance(place, dict) and place and (not key or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(place)))
        parent, place = place, place[key]
    parent[key] = value
    with suppress(ConfigError):
        Config(**values)


@settings(FUZZ, max_examples=15)
@given(st.data(), st.binary(max_size=4))
def test_any_damage_of_params_is_refused_or_does_not_matter(tmp_path: Path, data: st.DataObject, damage: bytes) -> None:
    content = (CHECKOUT / PARAMS_FILE).read_bytes()
    start = data.draw(st.integers(0, len(content)))
    (tmp_path / PARAMS_FILE).write_bytes(content[:start] + damage + content[start + data.draw(st.integers(0, 99)) :])
    with suppress(ConfigError):
        load_params(tmp_path)


def test_missing_params_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokenbridge params"):
        load_params(tmp_path)


def test_nested_settings_become_dotted() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
