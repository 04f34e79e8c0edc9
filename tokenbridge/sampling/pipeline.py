"""TokenBridgePipeline: a trained model with the interface of a diffusers pipeline.

pipeline = TokenBridgePipeline.from_pretrained("models/tiny")
pipeline(class_labels=[7], num_inference_steps=16, guidance_scale=3.0, generator=generator).images
"""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from tokenbridge.base.errors import UserError
from tokenbridge.base.loading import LoadError, load_whole
from tokenbridge.config.model import GuidanceSchedule, RevealOrder, SamplingSettings
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.sampling.sampler import Draws, sample_tokens
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer, to_maps, to_sequence
from tokenbridge.vae.autoencoder import decode_images, encode_moments

ClassLabels = int | str | Iterable[int | str] | Tensor | np.ndarray


class TokenBridgePipeline(DiffusionPipeline):
    """A pipeline that generates images of classes, and edits images while some tokens are kept (``edit``).

    ``to(device)`` and ``to(torch.bfloat16)`` work as in any diffusers pipeline; the quantizer stays float32. Sampling
    calls ``transformer.features``, so compile this method:
    ``pipeline.transformer.features = torch.compile(pipeline.transformer.features, dynamic=True)``.

    Args:
        vae: decodes latents, and encodes images to edit.
        transformer: predicts tokens.
        quantizer: turns tokens into latents.
        label_names: names of the classes, by label; empty: the classes have no names.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        transformer: TokenBridgeTransformer,
        quantizer: DimensionwiseQuantizer,
        label_names: Sequence[str] = (),  # the default makes diffusers save it as JSON, not as a module
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, transformer=transformer, quantizer=quantizer)
        self.register_to_config(label_names=list(label_names))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device_map: str | None = None, **options: Any
    ) -> "TokenBridgePipeline":
        """Load a pipeline that ``save_pretrained`` wrote.

        Args:
            device_map: one device for the whole pipeline, such as "cuda". diffusers' "balanced" is not supported,
                because a model of a billion parameters fits on one device.
            options: arguments of ``from_pretrained`` of the VAE and the transformer (torch_dtype, ...).

        Raises:
            LoadError: if a tensor is missing or left over; diffusers itself would only warn.
        """
        path = Path(folder)
        if not (path / "model_index.json").exists():
            raise LoadError(f"{path} is no trained pipeline: run `make repro` first, or name the folder of a pipeline")
        device = _device(device_map)
        pipeline = cls(
            vae=load_whole(AutoencoderKL, path / "vae", **options),
            transformer=load_whole(TokenBridgeTransformer, path / "transformer", **options),
            quantizer=load_whole(DimensionwiseQuantizer, path / "quantizer"),
            label_names=cls.load_config(path)["label_names"],
        )
        return pipeline.to(device)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, or their indices if they have no names."""
        return list(self.config.label_names) or [str(i) for i in range(self.transformer.config.num_classes)]

    @property
    def image_size(self) -> tuple[int, int]:
        """The height and width of an image, in pixels."""
        config = self.transformer.config
        stride = 2 ** (len(self.vae.config.block_out_channels) - 1) * self.quantizer.config.patch_size
        return config.grid_height * stride, config.grid_width * stride

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
    def __call__(
        self,
        class_labels: ClassLabels,
        num_inference_steps: int | None = SamplingSettings.steps,
        guidance_scale: float = SamplingSettings.guidance_scale,
        guidance_schedule: GuidanceSchedule = SamplingSettings.guidance_schedule,
        guidance_interval: Sequence[float] = SamplingSettings.guidance_interval,
        temperature: float = SamplingSettings.temperature,
        top_p: float = SamplingSettings.top_p,
        order: RevealOrder = SamplingSettings.order,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        given: Tensor | None = None,
        keep: Tensor | np.ndarray | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[int, int], None] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate one image for each of ``class_labels`` (indices or names).

        Args:
            num_inference_steps: at most the number of positions to draw; None: that number, but at most 16.
            guidance_scale, guidance_schedule, guidance_interval, temperature, top_p, order: see ``SamplingSettings``.
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
            temperature=temperature,
            top_p=top_p,
            order=order,
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
            UserError: if a weight is not finite, or if ``keep`` is not a mask over the positions.
        """
        config, device = self.transformer.config, self.transformer.device
        self._check_weights()
        kept = None if keep is None else self._check_keep(keep).flatten().to(device)
        given = None if given is None else given.to(device)
        draws = Draws.from_generators(generators, self.transformer.positions, config.dimensions).to(device)
        tokens = sample_tokens(
            self.transformer, self.quantizer, labels.to(device), draws, settings, on_step, given, kept
        )
        return self.decode_tokens(tokens)

    def encode_images(self, images: Sequence[Image.Image] | np.ndarray) -> Tensor:
        """Return tokens [N, S, C] of the posterior mean of PIL images, or of uint8 images [N, 3, H, W].

        Raises:
            UserError: if an image does not have the pipeline's size.
        """
        height, width = self.image_size
        arrays = [
            np.asarray(image.convert("RGB")).transpose(2, 0, 1) if isinstance(image, Image.Image) else image
            for image in images
        ]
        for array in arrays:
            if array.dtype != np.uint8 or array.shape != (3, height, width):
                raise UserError(
                    f"an image is {array.dtype} {list(array.shape)}: this model takes RGB images {width} wide and "
                    f"{height} high, from PIL or as uint8 [3, {height}, {width}]"
                )
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

    def _check_weights(self) -> None:
        for part in ("transformer", "vae"):
            for name, parameter in getattr(self, part).named_parameters():
                if not parameter.isfinite().all():
                    raise UserError(f"{part} weight {name} contains NaN or infinity: train or import the model again")

    def decode_tokens(self, tokens: Tensor) -> np.ndarray:
        """Return uint8 images [N, 3, H, W] of tokens [N, S, C]."""
        config = self.transformer.config
        latents = to_maps(self.quantizer.decode(tokens), config.grid_height, config.grid_width)
        return decode_images(self.vae, self.quantizer.denormalize(latents))


def _matches(names: Sequence[str], text: str) -> list[int]:
    """Return the indices of the classes that ``text`` may mean: one of exactly this name, or all that are alike."""
    exact = [index for index, name in enumerate(names) if name == text]
    alike = [index for index, name in enumerate(names) if _folded(name) == _folded(text)]
    named_by_digits = any(name.strip().isdecimal() for name in names)
    is_index = text in map(str, range(len(names))) and not named_by_digits
    return exact or alike or ([int(text)] if is_index else [])


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).strip()


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
