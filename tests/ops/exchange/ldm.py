"""An LDM-style autoencoder after its published description: names, shapes and arithmetic to judge the importer by."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(width_in), nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2, self.conv2 = norm(width_out), nn.Conv2d(width_out, width_out, 3, padding=1)
        if width_in != width_out:
            self.nin_shortcut = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """One head over all positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).flatten(2) for layer in (self.q, self.k, self.v))  # [N, width, positions]
        shares = (torch.einsum("ncq,nck->nqk", q, k) * x.shape[1] ** -0.5).softmax(-1)
        return x + self.proj_out(torch.einsum("nqk,nck->ncq", shares, v).reshape(x.shape))


class Resample(nn.Module):
    def __init__(self, width: int, *, up: bool) -> None:
        super().__init__()
        self.up, self.conv = up, nn.Conv2d(width, width, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0) if self.up else F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """The blocks of one resolution, each with its attention if there is any, and the way to the next one."""

    def __init__(self, widths: list[int], *, attention: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(Residual(a, b) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(Attention(b) for b in widths[1:] if attention)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if len(self.attn) else x
        return next((way(x) for way in (getattr(self, "downsample", None), getattr(self, "upsample", None)) if way), x)


class Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = Residual(width, width), Attention(width), Residual(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, widths: list[int], blocks: int, dimensions: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for before, width in zip([widths[0], *widths], widths, strict=False):
            self.down.append(Level([before] + [width] * blocks, attention=len(self.down) == len(widths) - 1))
        for level, width in zip(self.down[:-1], widths, strict=False):
            level.downsample = Resample(width, up=False)
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = norm(widths[-1]), nn.Conv2d(widths[-1], 2 * dimensions, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, widths: list[int], blocks: int, dimensions: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(dimensions, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()  # the lowest index is the highest resolution, which comes last
        for width, before in zip(widths, [*widths[1:], widths[-1]], strict=True):
            self.up.append(Level([before] + [width] * (blocks + 1)))
        for level, width in zip(self.up[1:], widths[1:], strict=True):
            level.upsample = Resample(width, up=True)
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    """The whole, at KL-16's size."""

    def __init__(self) -> None:
        super().__init__()
        widths, blocks, dimensions = [128, 128, 256, 256, 512], 2, 16
        self.encoder, self.decoder = Encoder(widths, blocks, dimensions), Decoder(widths, blocks, dimensions)
        self.quant_conv = nn.Conv2d(2 * dimensions, 2 * dimensions, 1)
        self.post_quant_conv = nn.Conv2d(dimensions, dimensions, 1)

    def moments(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))
