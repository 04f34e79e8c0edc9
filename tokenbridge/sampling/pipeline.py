"""TokenBridgePipeline: a trained model with the interface of a diffusers pipeline.

pipeline = TokenBridgePipeline.from_pretrained("models/tiny")
pipeline(class_labels=[7], num_inference_steps=16, guidance_scale=3.0, generator=generator).images
"""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from tokenbridge.base.checks import AUTO, Precision
from tokenbridge.base.device import autocast, resolve_precision
from tokenbridge.base.errors import UserError
from tokenbridge.base.loading import LoadError, load_whole, read_object
from tokenbridge.config.model import GuidanceOn, GuidanceSchedule, RevealOrder, SamplingSettings
from tokenbridge.images.decoding import to_rgb
from tokenbridge.model import AutoregressiveModel, load_model
from tokenbridge.sampling.sampler import Draws, sample_tokens
from tokenbridge.tokenizer.fitting import load_quantizer
from tokenbridge.tokenizer.latents import Quantizer, to_maps, to_sequence
from tokenbridge.vae.autoencoder import decode_images, encode_moments, stride

ClassLabels = int | str | Iterable[int | str] | Tensor | np.ndarray


class TokenBridgePipeline(DiffusionPipeline):
    """A pipeline that generates images of classes, and edits images while some tokens are kept (``edit``).

    ``to(device)`` and ``to(torch.bfloat16)`` work as in any diffusers pipeline; the quantizer stays float32. Sampling
    with a masked trunk calls ``transformer.features``, so compile this method:
    ``pipeline.transformer.features = torch.compile(pipeline.transformer.features, dynamic=True)``.

    Args:
        vae: decodes latents, and encodes images to edit.
        transformer: predicts tokens.
        quantizer: turns tokens into latents.
        label_names: names of the classes, by label; empty: the classes have no names.

    Attributes:
        precision: of products: ``auto``, ``bf16`` or ``fp32``, as in the stages' settings. The default, None, is
            ``auto`` on a GPU if the weights are float32. Otherwise it changes nothing: the weights' type or the current
            autocast decides.
    """

    precision: Precision | None = None

    def __init__(
        self,
        vae: AutoencoderKL,
        transformer: AutoregressiveModel,
        quantizer: Quantizer,
        label_names: Sequence[str] = (),  # the default makes diffusers save it as JSON, not as a module
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, transformer=transformer, quantizer=quantizer)
        self.register_to_config(label_names=list(label_names))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device_map: str | None = None,
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        variant: str | None = None,
        subfolder: str = "",
        use_safetensors: bool | None = None,
        local_files_only: bool = True,
    ) -> "TokenBridgePipeline":
        """Load a pipeline that ``save_pretrained`` wrote. The options have diffusers' names, and hold for every part.

        Args:
            device_map: one device for the whole pipeline, such as "cuda". diffusers' "balanced" is not supported,
                because a model of a billion parameters fits on one device.
            torch_dtype: the old name of ``dtype``.
            dtype: of the transformer and the VAE; the quantizer stays float32.
            variant: see ``load_whole``.
            use_safetensors: see ``load_whole``.
            subfolder: the pipeline's folder within ``folder``.
            local_files_only: has no effect, because nothing is ever downloaded.

        Raises:
            LoadError: if a part cannot be loaded as a whole (see ``load_whole``), or the parts do not fit together.
        """
        path = Path(folder, subfolder or "")
        if not (path / "model_index.json").exists():
            advice = "run `make repro` first, or name the folder of a pipeline on this machine"
            raise LoadError(f"{path} is no trained pipeline: {advice}")
        device, kind = _device(device_map), torch_dtype if dtype is None else dtype

        options: dict[str, Any] = {"torch_dtype": kind, "variant": variant, "use_safetensors": use_safetensors}
        pipeline = cls(
            vae=load_whole(AutoencoderKL, path / "vae", **options),
            transformer=load_model(path / "transformer", **options),
            quantizer=load_quantizer(path / "quantizer", **options),
            label_names=_label_names(path / "model_index.json"),
        )
        pipeline._check_parts(path)
        return pipeline.to(device)

    def _check_parts(self, path: Path) -> None:
        """Check that parts from ``path``, which others may have put together, fit."""
        self.quantizer.check()
        model, quantizer, classes = self.transformer.config, self.quantizer.config, len(self.config.label_names)
        of_vae = self.vae.config.latent_channels * quantizer.patch_size**2
        facts = {
            "dimensions of a token": [model.dimensions, quantizer.dimensions, of_vae],
            "slots of a token": [model.slots or model.dimensions, self.quantizer.slots],
            "levels": [model.levels, self.quantizer.classes],
            "classes": [model.num_classes, classes or model.num_classes],
        }
        for name, values in facts.items():
            if len(set(values)) > 1:
                raise LoadError(f"{path}: its parts differ in {name} {values}: take all of them from one pipeline")
        order = self.quantizer.dimension_order.tolist()
        if self.transformer.trunk == "elements" and order != sorted(order):
            raise LoadError(
                f"{path}: a model with trunk=elements needs dimensions in natural order, not {order}: take all of its "
                "parts from one pipeline"
            )

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, or their indices if they have no names."""
        return list(self.config.label_names) or [str(i) for i in range(self.transformer.config.num_classes)]

    @property
    def image_size(self) -> tuple[int, int]:
        """The height and width of an image, in pixels."""
        config = self.transformer.config
        side = stride(self.vae) * self.quantizer.config.patch_size
        return config.grid_height * side, config.grid_width * side

    def label_index(self, label: int | str) -> int:
        """Return the index of a class, given by its index or its name.

        A name is compared exactly, then without regard to case, to spaces around it and to how its accents are encoded.
        Digits in a string are an index only if no class has digits as its name.

        Raises:
            UserError: if no class fits, or several fit; the message lists them.
        """
        names = self.class_names
        if isinstance(label, str):
            found = _matches(names, label)
        else:
            whole = isinstance(label, int | np.integer) and not isinstance(label, bool)
            found = [int(label)] if whole and 0 <= label < len(names) else []
        if len(found) == 1:
            return found[0]
        listed = ", ".join(f"{i} {name}" for i, name in enumerate(names) if not found or i in found)
        raise UserError(f"there is {'more than one' if found else 'no'} class {label!r}: choose one of {listed}")

    def label_indices(self, labels: ClassLabels) -> list[int]:
        """Return the indices of classes; a single class may stand alone.

        Raises:
            UserError: if there are none, or as ``label_index``.
        """
        given = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else labels
        each = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
        if not each:
            raise UserError("there are no class labels: give at least one")
        values: list[Any] = [label.item() if isinstance(label, Tensor) else label for label in each]
        return [self.label_index(value) for value in values]

    @torch.no_grad()
    def __call__(  # noqa: PLR0913, PLR0917  an argument for each setting, as in diffusers
        self,
        class_labels: ClassLabels,
        num_inference_steps: int | None = SamplingSettings.steps,
        guidance_scale: float = SamplingSettings.guidance_scale,
        guidance_schedule: GuidanceSchedule = SamplingSettings.guidance_schedule,
        guidance_interval: Sequence[float] = SamplingSettings.guidance_interval,
        guidance_refresh: int = SamplingSettings.guidance_refresh,
        guidance_on: GuidanceOn = SamplingSettings.guidance_on,
        temperature: float = SamplingSettings.temperature,
        top_p: float = SamplingSettings.top_p,
        order: RevealOrder | None = SamplingSettings.order,
        speculative: bool = SamplingSettings.speculative,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        given: Tensor | None = None,
        keep: Tensor | np.ndarray | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[int, int], None] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate one image for each of ``class_labels`` (indices or names).

        Args:
            num_inference_steps: at most the number of positions to draw; None: see ``SamplingSettings``.
            guidance_scale, guidance_schedule, guidance_interval, guidance_refresh, guidance_on, temperature, top_p,
                order, speculative: see ``SamplingSettings``.
            generator: one for all images, or one for each image. Image i depends only on its own generator.
            given: tokens [N, S, C] of images to edit; needs ``keep``.
            keep: a mask [h, w] over positions, true where the tokens of ``given`` are kept (see ``edit``).
            output_type: "pil", or "np" for float [N, H, W, 3] in [0, 1].
            callback_on_step_end: called with (steps done, total steps).
        """
        if output_type not in ("pil", "np"):
            raise UserError(f"output_type is {output_type!r}: choose 'pil' or 'np'")
        settings = SamplingSettings(
            steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_schedule=guidance_schedule,
            guidance_interval=guidance_interval,
            guidance_refresh=guidance_refresh,
            guidance_on=guidance_on,
            temperature=temperature,
            top_p=top_p,
            order=order,
            speculative=speculative,
        )
        labels = torch.tensor(self.label_indices(class_labels))
        generators = image_generators(generator, len(labels))
        images = self.sample(labels, generators, settings, callback_on_step_end, given, keep)
        hwc = images.transpose(0, 2, 3, 1)
        output = [Image.fromarray(image) for image in hwc] if output_type == "pil" else hwc.astype(np.float32) / 255
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    def edit(
        self,
        images: Sequence[Image.Image] | np.ndarray,
        keep: Tensor | np.ndarray,
        class_labels: ClassLabels,
        **options: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw a part of each image again, as the class that ``class_labels`` gives for the image.

        The class may differ from what the image shows. Kept tokens do not change. Their pixels pass through the VAE,
        whose decoder also uses neighbouring positions, so pixels near the edge of the kept part can change.

        Args:
            images: one for each label, as in ``encode_images``.
            keep: a mask [h, w] over positions, true where the image is kept.
            options: other arguments of ``__call__``.
        """
        self._check_keep(keep)
        labels = self.label_indices(class_labels)
        if len(images) != len(labels):
            raise UserError(f"{len(images)} images for {len(labels)} class labels: give one label for each image")
        return self(labels, given=self.encode_images(images), keep=keep, **options)

    def sample(
        self,
        labels: Tensor,
        generators: Sequence[torch.Generator],
        settings: SamplingSettings,
        on_step: Callable[[int, int], None] | None = None,
        given: Tensor | None = None,
        keep: Tensor | np.ndarray | None = None,
    ) -> np.ndarray:
        """Return uint8 images [N, 3, H, W] for label indices [N]; ``given`` and ``keep`` as in ``__call__``.

        Raises:
            UserError: if ``keep`` is not a mask over the positions.
            NotFiniteError: if a logit or a pixel is NaN or infinite; the message names the cause.
        """
        device = self.transformer.device
        model = self.transformer
        kept = None if keep is None else self._check_keep(keep).flatten().to(device)
        if kept is not None:
            kept = kept.repeat_interleave(model.units // model.positions)
        given = None if given is None else given.to(device)
        draws = Draws.from_generators(generators, model.units, model.head.draw_numbers, settings.speculative)
        with self._numerics():
            tokens = sample_tokens(
                model, self.quantizer, labels.to(device), draws.to(device), settings, on_step, given, kept
            )
        return self.decode_tokens(tokens)

    def encode_images(self, images: Sequence[Image.Image] | np.ndarray) -> Tensor:
        """Return tokens [N, S, G] of the posterior mean of PIL images, or of uint8 images [N, 3, H, W].

        Raises:
            UserError: if an image does not have the pipeline's size.
        """
        height, width = self.image_size
        arrays = [
            np.asarray(to_rgb(image)).transpose(2, 0, 1) if isinstance(image, Image.Image) else image
            for image in images
        ]
        for array in arrays:
            if array.dtype != np.uint8 or array.shape != (3, height, width):
                raise UserError(
                    f"an image is {array.dtype} {list(array.shape)}: this model takes RGB images {width} wide and "
                    f"{height} high, from PIL or as uint8 [3, {height}, {width}]"
                )
        with self._numerics():
            mean, _ = encode_moments(self.vae, np.stack(arrays)).chunk(2, dim=1)
        return self.quantizer.encode(to_sequence(self.quantizer.normalize(mean)))

    def _check_keep(self, keep: Tensor | np.ndarray) -> Tensor:
        grid = self.transformer.config.grid_height, self.transformer.config.grid_width
        mask = torch.as_tensor(keep)
        if mask.shape != grid or mask.dtype != torch.bool:
            raise UserError(
                f"keep is {mask.dtype} {list(mask.shape)}: give a mask of bools {list(grid)}, a value for each position"
            )
        return mask

    def decode_tokens(self, tokens: Tensor) -> np.ndarray:
        """Return uint8 images [N, 3, H, W] of tokens [N, S, G]."""
        config = self.transformer.config
        latents = to_maps(self.quantizer.decode(tokens), config.grid_height, config.grid_width)
        with self._numerics():
            return decode_images(self.vae, self.quantizer.denormalize(latents))

    def _numerics(self) -> AbstractContextManager[Any]:
        """Return the context in which the parts compute products in ``precision``."""
        device = self.transformer.device
        if self.precision is None and (device.type == "cpu" or self.transformer.dtype != torch.float32):
            return nullcontext()
        return autocast(device, resolve_precision(self.precision or AUTO, device))


def _matches(names: Sequence[str], text: str) -> list[int]:
    """Return the indices of the classes that ``text`` may mean: one of exactly this name, or all that are alike."""
    exact = [index for index, name in enumerate(names) if name == text]
    alike = [index for index, name in enumerate(names) if _folded(name) == _folded(text)]
    named_by_digits = any(name.strip().isdecimal() for name in names)
    is_index = text in map(str, range(len(names))) and not named_by_digits
    return exact or alike or ([int(text)] if is_index else [])


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).strip()


def _label_names(index: Path) -> list[str]:
    names = read_object(index).get("label_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise LoadError(f"{index}: label_names is {names!r:.100}: it should be a list with the names of the classes")
    return names


def _device(device_map: str | None) -> torch.device:
    try:
        return torch.device(device_map or "cpu")
    except RuntimeError as error:
        raise UserError(f"device_map is {device_map!r}: name one device, such as 'cpu' or 'cuda'") from error


def image_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> Sequence[torch.Generator]:
    """Return one generator for each image: the given generators, or new generators seeded by the single one."""
    if isinstance(generator, Sequence):
        if len(generator) != count:
            raise UserError(f"{len(generator)} generators for {count} images: give one, or one for each image")
        return generator
    device = generator.device if generator is not None else torch.device("cpu")
    seeds = torch.randint(2**62, (count,), generator=generator, device=device).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]
