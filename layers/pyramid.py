"""Feature pyramids inside the encoder: the report's FPPM and PAN's feature pyramid attention."""

from __future__ import annotations

from autograd import Tensor, ops
from autograd.checks import checked_image
from autograd.operands import as_tensor
from layers.conv import ConvNorm, ConvTranspose2d
from layers.module import Module
from layers.norm import BatchNorm2d


class FeaturePyramidPooling(Module):
    """Global, medium and fine context merged: x (N, H, W, C) -> (N, H, W, C).

    y = CBR1x1(concat(x, CBR1x1(mean), up(CBR3x3(4x average)), CBR3x3(x))), C / 4 channels each.
    mean is over the image, the 4x average over a grid of H / 4 x W / 4, up bilinear to (H, W). The report's module.
    """

    def __init__(self, channels: int) -> None:
        branch = max(1, channels // 4)
        self.whole = ConvNorm(channels, branch, 1)
        self.medium = ConvNorm(channels, branch, 3)
        self.fine = ConvNorm(channels, branch, 3)
        self.fuse = ConvNorm(channels + 3 * branch, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = as_tensor("FeaturePyramidPooling: x", x)
        h, w = checked_image("FeaturePyramidPooling", x)
        whole = self.whole(ops.adaptive_avg_pool2d(x, 1))
        medium = self.medium(ops.adaptive_avg_pool2d(x, (max(1, h // 4), max(1, w // 4))))
        parts = [
            x,
            ops.broadcast_to(whole, (len(x), h, w, whole.shape[3])),
            ops.resize_bilinear(medium, (h, w)),
            self.fine(x),
        ]
        return self.fuse(ops.concat(parts))


class FeaturePyramidAttention(Module):
    """y = relu(BN(1x1(x)) a + g): a the map of a 7-5-3 pyramid, g = BN(1x1(mean)), x (N, H, W, C) -> (N, H, W, C).

    The pyramid halves the map three times (convolutions 7x7, 5x5, 3x3 to C / 4 channels) and goes back by transposed
    convolutions. Raises ValueError unless 8 divides H and W.
    Source: PAN, Li et al., arXiv 1805.10180.
    """

    def __init__(self, channels: int) -> None:
        inner = max(1, channels // 4)
        self.master = ConvNorm(channels, channels, 1, activation=None)
        self.whole = ConvNorm(channels, channels, 1, activation=None)
        self.down = [ConvNorm(channels if k == 7 else inner, inner, k) for k in (7, 5, 3)]
        self.side = [ConvNorm(inner, inner, k, activation=None) for k in (7, 5, 3)]
        outs = (channels, inner, inner)
        self.up = [ConvTranspose2d(inner, out, 4, 2, 1, bias=False) for out in outs]
        self.up_norm = [BatchNorm2d(out, activation="relu") for out in outs]

    def forward(self, x: Tensor) -> Tensor:
        x = as_tensor("FeaturePyramidAttention: x", x)
        h, w = checked_image("FeaturePyramidAttention", x)
        if h % 8 or w % 8:
            raise ValueError(f"FeaturePyramidAttention: the map is {(h, w)}, expected multiples of 8 (three halvings)")
        levels = []
        y = x
        for down in self.down:
            y = down(ops.max_pool2d(y, 2))
            levels.append(y)
        y = self.up_norm[2](self.up[2](self.side[2](levels[2])))
        for k in (1, 0):
            y = self.up_norm[k](self.up[k](ops.relu(self.side[k](levels[k]) + y)))
        return ops.relu(self.master(x) * y + self.whole(ops.adaptive_avg_pool2d(x, 1)))
