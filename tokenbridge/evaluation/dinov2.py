"""Features of images from a DINOv2 ViT. The user provides the released weights.

Distances on them follow human judgement more closely than those on Inception's (Stein et al., arXiv 2306.04675).
"""

from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tokenbridge.base.loading import LoadError, read_weights, tensors_by_name, unwrapped
from tokenbridge.evaluation.features import POOLED, Features, Images, extract_with

SIDE, PATCH = 224, 14  # pixels
OFFSET = 0.1  # DINOv2 adds it to the grid's sides when it resamples the position embeddings
SIZES = {384: "small", 768: "base", 1024: "large"}  # width -> name
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_dinov2(path: Path) -> VisionTransformer:
    """Return the ViT whose released weights are in ``path``, such as dinov2_vitl14_pretrain.pth; every tensor must fit.

    Raises:
        LoadError: if the file cannot be read, or does not hold them.
    """
    weights = tensors_by_name(unwrapped(read_weights(path)), str(path))
    weights.pop("mask_token", None)  # used in training only
    size = SIZES.get(weights["cls_token"].numel()) if {"cls_token", "pos_embed"} <= weights.keys() else None
    try:
        with torch.device("meta"):  # weights need no start
            name = f"vit_{size}_patch{PATCH}_dinov2"
            net: VisionTransformer = timm.create_model(name, pretrained=False, img_size=SIDE, num_classes=0)
        weights["pos_embed"] = resample_positions(weights["pos_embed"])
        net.load_state_dict(weights, assign=True)
    except (RuntimeError, LookupError, ArithmeticError) as error:  # what tensors of other shapes raise
        advice = "set evaluate.dinov2_weights to a file such as dinov2_vitl14_pretrain.pth, or to null"
        raise LoadError(f"{path} holds no DINOv2 ViT without registers ({error!s:.300}): {advice}") from error
    return net.float().eval()


def resample_positions(embeddings: Tensor) -> Tensor:
    """Resample position embeddings [1, 1 + n * n, D], the first for the class token, as the released code does."""
    of_class, of_patches = embeddings[:, :1], embeddings[:, 1:]
    side, grid = round(of_patches.shape[1] ** 0.5), SIDE // PATCH
    if side == grid:
        return embeddings
    maps = of_patches.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    maps = F.interpolate(maps, scale_factor=(grid + OFFSET) / side, mode="bicubic")
    return torch.cat([of_class, maps.flatten(2).transpose(1, 2)], dim=1)


def dinov2_features(images: Images, weights: Path) -> Features:
    """Return the class token ``pooled`` [N, D] of uint8 images [3, H, W], resized to 224 x 224 pixels, in float32.

    ``weights`` is as in ``load_dinov2``.
    """
    net = load_dinov2(weights)

    def forward(batch: Tensor) -> Features:
        scaled = F.interpolate(batch.float(), (SIDE, SIDE), mode="bicubic", antialias=True).round().clamp(0, 255)
        mean, std = (torch.tensor(values, device=batch.device)[:, None, None] for values in (MEAN, STD))
        return {POOLED: net((scaled / 255 - mean) / std).float()}

    return extract_with(net, forward, images)
