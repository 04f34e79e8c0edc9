"""``tokenbridge resize``: a pipeline for another image size, whose position embeddings are resampled.

Shapes: P buffer positions, h x w = S positions, D width.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import new_folder
from tokenbridge.model import AutoregressiveModel
from tokenbridge.sampling.pipeline import TokenBridgePipeline

Grid = tuple[int, int]


def resize_pipeline(folder: Path, image_size: int, out: Path) -> None:
    """Write the pipeline in ``folder`` for images of ``image_size`` x ``image_size`` pixels to ``out``.

    Raises:
        UserError: if ``out`` exists, ``folder`` is no pipeline, or the size is no multiple of its stride.
    """
    with new_folder(out) as target:
        pipeline = TokenBridgePipeline.from_pretrained(folder)
        side = pipeline.image_size[0] // pipeline.transformer.config.grid_height
        if image_size < side or image_size % side:
            raise UserError(f"the image size is {image_size}: must be a multiple of {side} pixels, the model's stride")
        grid = image_size // side, image_size // side
        pipeline.register_modules(transformer=resized(pipeline.transformer, grid))
        pipeline.save_pretrained(target)


def resized(model: AutoregressiveModel, grid: Grid) -> AutoregressiveModel:
    """Return the model for a ``grid`` of h x w positions; only its position embeddings differ."""
    old = model.config.grid_height, model.config.grid_width
    weights = dict(model.state_dict())
    for name in model.learned:
        if name.endswith("_position"):
            weights[name] = resampled(weights[name], old, grid)
    larger = type(model).from_config(model.config, grid_height=grid[0], grid_width=grid[1])
    larger.load_state_dict(weights)
    return larger.eval()


def resampled(embeddings: Tensor, old: Grid, new: Grid) -> Tensor:
    """Return embeddings [1, P + S, D] for the ``new`` grid, by bicubic interpolation; the first P, if any, stay."""
    positions = old[0] * old[1]
    buffer, field = embeddings.split([embeddings.shape[1] - positions, positions], dim=1)
    picture = field.unflatten(1, old).permute(0, 3, 1, 2)
    picture = F.interpolate(picture, size=new, mode="bicubic", antialias=True)  # antialias: also right for fewer
    return torch.cat([buffer, picture.flatten(2).transpose(1, 2)], dim=1)
