"""The pipeline as users hold it."""

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.small_pipeline import NAMES, build_pipeline
from tokenbridge.base.checks import AUTO, BF16, FP32, Precision
from tokenbridge.base.device import autocast
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import read_json, write_json
from tokenbridge.base.finite import NotFiniteError
from tokenbridge.base.loading import LoadError
from tokenbridge.config.model import REVEAL_ORDERS, SamplingSettings
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.tokenizer.latents import to_sequence
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer
from tokenbridge.vae.autoencoder import encode_moments

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8)
LEFT = torch.arange(4).expand(4, 4) < 2


@pytest.fixture
def pipeline(model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer) -> TokenBridgePipeline:
    return build_pipeline(model, quantizer)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(images: list[object]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_the_same_seed_gives_the_same_pictures(pipeline: TokenBridgePipeline) -> None:
    first, second = (pipeline([0, "bag"], 4, generator=seeded(1)).images for _ in range(2))
    assert [image.size for image in first] == [(8, 8), (8, 8)]
    assert np.array_equal(pixels(first), pixels(second))
    assert not np.array_equal(pixels(first), pixels(pipeline([0, "bag"], 4, generator=seeded(2)).images))


def test_a_generator_for_each_image_makes_it_independent_of_the_others(pipeline: TokenBridgePipeline) -> None:
    together = pipeline([0, 1], 4, generator=[seeded(1), seeded(2)]).images
    alone = pipeline([1], 4, generator=[seeded(2)]).images
    assert np.array_equal(pixels(together)[1], pixels(alone)[0])


def test_it_survives_saving(pipeline: TokenBridgePipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = TokenBridgePipeline.from_pretrained(tmp_path)
    assert loaded.config.label_names == NAMES
    before, after = (each([2], 4, generator=seeded()).images for each in (pipeline, loaded))
    assert np.array_equal(pixels(before), pixels(after))


def test_numpy_output_is_the_picture_in_the_unit_range(pipeline: TokenBridgePipeline) -> None:
    numbers, pictures = (pipeline([0], 4, generator=seeded(), output_type=kind).images for kind in ("np", "pil"))
    assert np.array_equal(numbers, pixels(pictures).astype(np.float32) / 255)


@pytest.mark.parametrize(
    ("precision", "device", "weights", "expected"),
    [
        (None, "cuda", torch.float32, torch.bfloat16),
        (None, "cuda", torch.float16, torch.float16),
        (None, "cpu", torch.float32, torch.float32),  # also where the processor has bfloat16
        (AUTO, "cpu", torch.float32, torch.bfloat16),
        (FP32, "cuda", torch.float32, torch.float32),
    ],
)
def test_products_are_in_the_precision(
    pipeline: TokenBridgePipeline,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision | None,
    device: str,
    weights: torch.dtype,
    expected: torch.dtype,
) -> None:
    """A GPU is played by the CPU with a GPU's name."""
    monkeypatch.setattr("tokenbridge.base.device.has_bf16", lambda _: True)
    monkeypatch.setattr("tokenbridge.sampling.pipeline.autocast", lambda _, name: autocast(torch.device("cpu"), name))
    monkeypatch.setattr(TokenBridgeTransformer, "device", torch.device(device))
    pipeline.to(dtype=weights).precision = precision
    seen = types_of(pipeline.vae.quant_conv, pipeline.vae.post_quant_conv)
    pipeline.decode_tokens(pipeline.encode_images(IMAGES))
    assert seen == [expected] * 2


def test_sampling_is_in_the_precision_too(pipeline: TokenBridgePipeline) -> None:
    pipeline.precision = BF16
    seen = types_of(pipeline.transformer.token_in, pipeline.vae.post_quant_conv)
    pipeline([0], 1, 1.0)
    assert seen == [torch.bfloat16] * 2


def types_of(*modules: torch.nn.Module) -> list[torch.dtype]:
    """The types of these modules' outputs, as they come."""
    seen: list[torch.dtype] = []
    for module in modules:
        module.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    return seen


FOLDERS = sorted(str(number) for number in range(12))  # as class folders 0 to 11 are sorted: 0, 1, 10, 11, 2, ...
ZURICH = "Z\u00fcrich"


@pytest.mark.parametrize(
    ("names", "label", "index"),
    [
        (NAMES, "sneaker", 0),
        (NAMES, " Ankle Boot", 2),
        (NAMES, 1, 1),
        (NAMES, "2", 2),  # digits are an index if no class is named by digits
        (NAMES, np.int64(2), 2),
        (FOLDERS, 2, 2),
        (FOLDERS, "2", 4),
        (["A", "B", "a"], "a", 2),
        (["A", "B", "a"], "b", 1),
        (["x", unicodedata.normalize("NFD", ZURICH)], ZURICH.upper(), 1),
        (["x", "stra\u00dfe"], "STRASSE", 1),
    ],
)
def test_an_integer_is_an_index_and_a_string_is_a_name(
    pipeline: TokenBridgePipeline, names: list[str], label: int | str, index: int
) -> None:
    pipeline.register_to_config(label_names=names)
    assert pipeline.label_index(label) == index


@pytest.mark.parametrize("names", [["1", "2", "3"], ["A", "a", "3"]])
@pytest.mark.parametrize("label", ["0", " a", True, 1.0, None, np.bool_(True), -1, 3, "9" * 5000])
def test_a_class_that_is_not_certain_is_refused(pipeline: TokenBridgePipeline, names: list[str], label: Any) -> None:
    pipeline.register_to_config(label_names=names)
    with pytest.raises(UserError, match="choose one of 0"):
        pipeline.label_index(label)


@pytest.mark.parametrize(
    "labels", [[1, 2], (1, 2), range(1, 3), torch.tensor([1, 2]), np.array([1, 2]), ["Bag", torch.tensor(2)]]
)
def test_labels_come_in_any_container(pipeline: TokenBridgePipeline, labels: Any) -> None:
    assert pipeline.label_indices(labels) == [1, 2]


@pytest.mark.parametrize("label", [1, "Bag", torch.tensor(1), np.int64(1)])
def test_a_single_label_stands_alone(pipeline: TokenBridgePipeline, label: Any) -> None:
    assert pipeline.label_indices(label) == [1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"class_labels": ["Hat"]}, "0 Sneaker, 1 Bag, 2 Ankle boot"),
        ({"class_labels": []}, "there are no class labels"),
        ({"class_labels": [3]}, "no class 3"),
        ({"class_labels": [-1]}, "no class -1"),
        ({"class_labels": [0], "num_inference_steps": 17}, "at most 16 steps"),
        ({"class_labels": [0], "top_p": 2}, "top_p is 2"),
        ({"class_labels": [0], "guidance_scale": 1e30}, "guidance_scale is 1e\\+30: must be less than"),
        ({"class_labels": [0], "temperature": 1e-320}, "temperature is 1e-320: must be 0"),
        ({"class_labels": [0], "output_type": "jpeg"}, "'pil' or 'np'"),
        ({"class_labels": [0, 1], "generator": [seeded()]}, "1 generators for 2 images"),
    ],
)
def test_mistakes_are_explained(pipeline: TokenBridgePipeline, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(**wrong)


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no trained pipeline"):
        TokenBridgePipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("order", REVEAL_ORDERS)
def test_every_sampling_setting_is_an_argument(pipeline: TokenBridgePipeline, order: str) -> None:
    steps: list[tuple[int, int]] = []
    options = {
        "guidance_schedule": "cosine",
        "guidance_interval": (0.2, 0.8),
        "guidance_refresh": 2,
        "guidance_on": "output",
        "temperature": 0.9,
        "top_p": 0.9,
    }
    pipeline([0], 5, order=order, **options, callback_on_step_end=lambda *step: steps.append(step))
    assert steps == [(done, 5) for done in range(1, 6)]


def test_classes_that_nobody_named_go_by_their_index(
    model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer
) -> None:
    named = build_pipeline(model, quantizer)
    pipeline = TokenBridgePipeline(named.vae, model, quantizer)
    assert pipeline.label_index(2) == 2
    with pytest.raises(UserError, match="no class 3: choose one of 0 0, 1 1, 2 2"):
        pipeline.label_index(3)


@pytest.mark.parametrize("part", ["transformer", "vae"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(pipeline: TokenBridgePipeline, part: str, value: float) -> None:
    name, weight = list(getattr(pipeline, part).named_parameters())[-1]
    with torch.no_grad():
        weight.view(-1)[0] = value
    with pytest.raises(NotFiniteError, match=f"contain NaN or infinity: .*'s {name} is not finite"):
        pipeline([0], 4)


def test_a_quantizer_that_is_not_finite_is_named(pipeline: TokenBridgePipeline) -> None:
    pipeline.quantizer.scale.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match=r"pixels contain NaN.*so check the quantizer"):
        pipeline([0], 4)
    with pytest.raises(NotFiniteError, match="DimensionwiseQuantizer's scale is not finite"):
        pipeline.edit(IMAGES, LEFT, [0, 1])


@pytest.mark.parametrize(
    ("part", "weight", "what"),
    [
        ("vae", "decoder.conv_in", "pixels"),
        ("vae", "encoder.conv_in", "moments"),
        ("transformer", "token_in", "logits"),
    ],
)
def test_half_precision_that_overflows_is_named(
    pipeline: TokenBridgePipeline, part: str, weight: str, what: str
) -> None:
    """Every weight is finite in float16; what is computed from them is not."""
    pipeline.to(torch.float16)
    with torch.no_grad():
        getattr(pipeline, part).get_submodule(weight).weight.fill_(3e4)
    with pytest.raises(NotFiniteError, match=f"{what}.* contain NaN.*too large for float16: use bfloat16"):
        pipeline.edit(IMAGES, LEFT, [0, 1])


@pytest.mark.parametrize("order", REVEAL_ORDERS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guidance_that_overflows_is_named(pipeline: TokenBridgePipeline, order: str, temperature: float) -> None:
    """Settings allow no such scale; whoever gets past them is told, too."""
    settings = SamplingSettings(steps=4, order=order, temperature=temperature)
    object.__setattr__(settings, "guidance_scale", 1e30)
    with pytest.raises(NotFiniteError, match=r"logits contain NaN.*use a smaller guidance_scale"):
        pipeline.sample(torch.tensor([0, 1]), [seeded(0), seeded(1)], settings)


def test_images_become_the_tokens_of_their_posterior_mean(pipeline: TokenBridgePipeline) -> None:
    tokens = pipeline.encode_images(IMAGES)
    mean = encode_moments(pipeline.vae, IMAGES)[:, :4]
    assert torch.equal(tokens, pipeline.quantizer.encode(to_sequence(pipeline.quantizer.normalize(mean))))
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in IMAGES]
    assert torch.equal(tokens, pipeline.encode_images(pictures))
    clear, white = Image.new("RGBA", pictures[0].size, (0, 255, 0, 0)), Image.new("RGB", pictures[0].size, "white")
    assert torch.equal(pipeline.encode_images([clear]), pipeline.encode_images([white]))
    with pytest.raises(UserError, match=r"pixels of mode I;16: convert it to 8 bits"):
        pipeline.encode_images([Image.new("I;16", pictures[0].size)])


def test_an_edit_looks_at_its_class_and_at_what_is_kept(pipeline: TokenBridgePipeline) -> None:
    pipeline.quantizer.loc.zero_()
    pipeline.quantizer.scale.fill_(0.1)  # about what this VAE gives, so that different images have different tokens
    strong = {"guidance_scale": 1000.0, "guidance_schedule": "constant"}  # random weights hardly tell classes apart

    def edit(images: np.ndarray, label: int) -> np.ndarray:
        generators = [seeded() for _ in images]
        return pixels(pipeline.edit(images, LEFT, [label] * len(images), generator=generators, **strong).images)

    bags, boots = edit(IMAGES, 1), edit(IMAGES, 2)
    assert not np.array_equal(bags, boots)
    assert not np.array_equal(bags[0], bags[1])
    assert np.array_equal(bags[:1], edit(IMAGES[:1], 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep": torch.ones(2, 4, dtype=torch.bool)}, r"a mask of bools \[4, 4\]"),
        ({"keep": torch.ones(4, 4)}, "a mask of bools"),
        ({"images": IMAGES[..., :4]}, "8 wide and 8 high"),
        ({"images": [Image.new("RGB", (8, 8)), Image.new("L", (9, 8))]}, r"uint8 \[3, 8, 9\]"),
        ({"images": IMAGES / 255}, "is float64"),
        ({"class_labels": [0]}, "2 images for 1 class labels"),
    ],
)
def test_mistakes_in_edits_are_explained(pipeline: TokenBridgePipeline, wrong: dict[str, object], message: str) -> None:
    right = {"images": IMAGES, "keep": LEFT, "class_labels": [0, 1]}
    with pytest.raises(UserError, match=message):
        pipeline.edit(**{**right, **wrong})


def test_bfloat16_leaves_the_quantizer_alone(pipeline: TokenBridgePipeline) -> None:
    levels = pipeline.quantizer.levels.clone()
    pipeline.to(torch.bfloat16)
    assert pipeline.transformer.dtype == pipeline.vae.dtype == torch.bfloat16
    assert torch.equal(pipeline.quantizer.levels, levels)
    assert pipeline.edit(IMAGES, LEFT, [0, 1]).images[0].size == (8, 8)


@pytest.mark.pipeline  # for its time alone
def test_a_compiled_transformer_draws_the_same(pipeline: TokenBridgePipeline) -> None:
    before = pixels(pipeline([0], 3, generator=seeded()).images)
    pipeline.transformer.features = torch.compile(pipeline.transformer.features, backend="eager", dynamic=True)
    assert np.array_equal(before, pixels(pipeline([0], 3, generator=seeded()).images))
    pipeline.transformer = torch.compile(pipeline.transformer, backend="eager")
    assert np.array_equal(before, pixels(pipeline([0], 3, generator=seeded()).images))


def test_a_device_can_be_chosen_when_loading(pipeline: TokenBridgePipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = TokenBridgePipeline.from_pretrained(tmp_path, device_map="cpu", torch_dtype=torch.bfloat16)
    assert loaded.transformer.device == torch.device("cpu")
    assert loaded.transformer.dtype == torch.bfloat16
    assert loaded.quantizer.levels.dtype == torch.float32
    with pytest.raises(UserError, match="name one device"):
        TokenBridgePipeline.from_pretrained(tmp_path, device_map="balanced")


def test_every_option_reaches_every_part(pipeline: TokenBridgePipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "inner", variant="fp16", safe_serialization=False)
    options = {"subfolder": "inner", "variant": "fp16", "use_safetensors": False, "local_files_only": True}
    for dtype in ({"dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}):
        loaded = TokenBridgePipeline.from_pretrained(tmp_path, **options, **dtype)
        assert loaded.transformer.dtype == loaded.vae.dtype == torch.bfloat16
        assert torch.equal(loaded.quantizer.levels, pipeline.quantizer.levels)
    with pytest.raises(LoadError, match="vae has no weights of the variant 'fp32'"):
        TokenBridgePipeline.from_pretrained(tmp_path, **options | {"variant": "fp32"})


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_index.json", {"label_names": "abc"}, "label_names is 'abc'"),
        ("model_index.json", {"label_names": ["a", "b"]}, r"classes \[3, 2\]"),
        ("quantizer/config.json", {"patch_size": 2}, r"dimensions of a token \[4, 4, 16\]"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    pipeline: TokenBridgePipeline, tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    pipeline.save_pretrained(tmp_path)
    write_json(tmp_path / file, read_json(tmp_path / file) | change)
    with pytest.raises(LoadError, match=message):
        TokenBridgePipeline.from_pretrained(tmp_path)


def test_names_that_are_missing_are_numbers(pipeline: TokenBridgePipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    index = read_json(tmp_path / "model_index.json")
    write_json(tmp_path / "model_index.json", {name: value for name, value in index.items() if name != "label_names"})
    assert TokenBridgePipeline.from_pretrained(tmp_path).class_names == ["0", "1", "2"]


def test_a_pipeline_saved_by_version_0_1_loads(pipeline: TokenBridgePipeline, tmp_path: Path) -> None:
    """Its model_index.json names the quantizer's module of that version."""
    pipeline.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    content = read_json(index)
    write_json(index, content | {"quantizer": ["tokenbridge.quantizer", "DimensionwiseQuantizer"]})
    loaded = TokenBridgePipeline.from_pretrained(tmp_path)
    assert torch.equal(loaded.quantizer.levels, pipeline.quantizer.levels)
