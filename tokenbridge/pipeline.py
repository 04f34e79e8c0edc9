"""TokenBridgePipeline: a trained model as diffusers users expect it.

pipeline = TokenBridgePipeline.from_pretrained("models/tiny")
pipeline(class_labels=[7], num_inference_steps=16, guidance_scale=2.0, generator=generator).images
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from tokenbridge.errors import UserError
from tokenbridge.loading import LoadError, load_whole
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.quantizer import DimensionwiseQuantizer, to_maps
from tokenbridge.sampling import Draws, SamplingSettings, sample_tokens
from tokenbridge.vae import decode_images


class TokenBridgePipeline(DiffusionPipeline):
    """Class labels in, images out.

    Args:
        vae: decodes latents.
        transformer: predicts tokens.
        quantizer: turns tokens into latents.
        label_names: what the classes are called.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        transformer: TokenBridgeTransformer,
        quantizer: DimensionwiseQuantizer,
        label_names: Sequence[str] = (),  # with a default, so that diffusers saves it as JSON and not as a module
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, transformer=transformer, quantizer=quantizer)
        self.register_to_config(label_names=list(label_names))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> "TokenBridgePipeline":
        """Load what ``save_pretrained`` wrote; ``options`` go to each module's ``from_pretrained`` (torch_dtype, ...).

        Raises:
            LoadError: if a tensor is missing or left over; diffusers itself would only warn.
        """
        path = Path(folder)
        if not (path / "model_index.json").exists():
            raise LoadError(f"{path} is no trained pipeline: run `make repro` first, or name the folder of one")
        return cls(
            vae=load_whole(AutoencoderKL, path / "vae", **options),
            transformer=load_whole(TokenBridgeTransformer, path / "transformer", **options),
            quantizer=load_whole(DimensionwiseQuantizer, path / "quantizer"),
            label_names=cls.load_config(path)["label_names"],
        )

    def label_index(self, label: int | str) -> int:
        """Class index of a name (any case) or of an index.

        Raises:
            UserError: listing the classes there are.
        """
        names = [name.lower() for name in self.config.label_names]
        text = str(label).strip().lower()
        if text in names:
            return names.index(text)
        if text.isdecimal() and int(text) < len(names):
            return int(text)
        listed = ", ".join(f"{i} {name}" for i, name in enumerate(self.config.label_names))
        raise UserError(f"there is no class {label!r}: choose one of {listed}")

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int | str],
        num_inference_steps: int = 16,
        guidance_scale: float = 2.0,
        guidance_schedule: str = "linear",
        temperature: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[int, int], None] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate one image for each of ``class_labels`` (indices or names).

        Args:
            num_inference_steps: at most as many as there are positions.
            guidance_scale: 1 is no guidance.
            generator: one for all images, or one for each; image i then depends on its own generator alone.
            output_type: "pil", or "np" for float [N, H, W, 3] in [0, 1].
            callback_on_step_end: called with (steps done, steps in all).
        """
        if output_type not in ("pil", "np"):
            raise UserError(f"output_type is {output_type!r}: choose 'pil' or 'np'")
        settings = SamplingSettings(num_inference_steps, guidance_scale, guidance_schedule, temperature)
        labels = torch.tensor([self.label_index(label) for label in class_labels], dtype=torch.long)
        images = self.sample(labels, image_generators(generator, len(labels)), settings, callback_on_step_end)
        hwc = images.transpose(0, 2, 3, 1)
        output = [Image.fromarray(image) for image in hwc] if output_type == "pil" else hwc.astype(np.float32) / 255
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    def sample(
        self,
        labels: Tensor,
        generators: Sequence[torch.Generator],
        settings: SamplingSettings,
        on_step: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """uint8 images [N, 3, H, W] for label indices [N]."""
        config, device = self.transformer.config, self.transformer.device
        draws = Draws.from_generators(generators, self.transformer.positions, config.dimensions).to(device)
        tokens = sample_tokens(self.transformer, self.quantizer, labels.to(device), draws, settings, on_step)
        return self.decode_tokens(tokens)

    def decode_tokens(self, tokens: Tensor) -> np.ndarray:
        """uint8 images [N, 3, H, W] of tokens [N, S, C]."""
        config = self.transformer.config
        latents = to_maps(self.quantizer.decode(tokens), config.grid_height, config.grid_width)
        return decode_images(self.vae, self.quantizer.denormalize(latents))


def image_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> Sequence[torch.Generator]:
    """One generator for each image: those given, or new ones seeded by the single one."""
    if isinstance(generator, Sequence):
        if len(generator) != count:
            raise UserError(f"{len(generator)} generators for {count} images: give one, or one for each image")
        return generator
    device = generator.device if generator is not None else torch.device("cpu")
    seeds = torch.randint(2**62, (count,), generator=generator, device=device).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]
