r"""The DDPM++ and NCSN++ networks of Song et al. (arXiv 2011.13456, section 4.1 and appendix H).

A U-Net in which every sum of two branches is divided by :math:`\sqrt 2`. With r resizing (or not) and
g = silu(norm(.)), its residual blocks are

.. math:: x \mapsto \frac{1}{\sqrt2}\left(W_1\, r(x) +
          \mathrm{conv}\; g\big(\mathrm{conv}\; r(g(x)) + W_2\, \mathrm{silu}(temb)\big)\right).

NCSN++ resizes with the filter [1, 3, 3, 1] instead of averages and copies, and adds the shrunken input image to every
level. Attention has one head and stands after each residual block on the way down, and after the last one of a size
on the way up. Parameters carry the names and the order of the public implementation (``all_modules.N...``), so that
its checkpoints load.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SongUNet"]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class _Resize(nn.Module):
    """Halve or double the size of images; without parameters.

    Arguments:
        fir: Filter with [1, 3, 3, 1] in both directions; else averages and copies of 2 x 2 pixels.
    """

    kernel: Tensor

    def __init__(self, fir: bool) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) if fir else torch.tensor([1.0, 1.0])
        self.margin = len(row) // 2 - 1
        self.fir = fir
        self.register_buffer("kernel", torch.outer(row, row) / row.sum() ** 2, persistent=False)

    def _weight(self, x: Tensor) -> Tensor:
        return self.kernel.to(x.dtype).expand(x.shape[1], 1, *self.kernel.shape)

    def down(self, x: Tensor) -> Tensor:
        """Half the size."""
        if not self.fir:
            return F.avg_pool2d(x, 2)
        return F.conv2d(x, self._weight(x), stride=2, padding=self.margin, groups=x.shape[1])

    def up(self, x: Tensor) -> Tensor:
        """Twice the size."""
        if not self.fir:  # by copying: its gradient is a plain sum, in one order on every device
            b, c, h, w = x.shape
            return x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)
        return F.conv_transpose2d(x, 4 * self._weight(x), stride=2, padding=self.margin, groups=x.shape[1])


class _Block(nn.Module):
    """Residual block, after BigGAN; resizes its input if ``resize`` says so."""

    def __init__(
        self, inputs: int, outputs: int, embedding: int, resizer: _Resize, resize: Literal["up", "down"] | None = None
    ) -> None:
        super().__init__()
        self.GroupNorm_0 = _norm(inputs)
        self.Conv_0 = _conv3(inputs, outputs)
        self.Dense_0 = nn.Linear(embedding, outputs)
        self.GroupNorm_1 = _norm(outputs)
        self.Conv_1 = _conv3(outputs, outputs)
        if inputs != outputs or resize:
            self.Conv_2 = nn.Conv2d(inputs, outputs, 1)
        self.shortcut = inputs != outputs or resize is not None
        self.resizer = resizer
        self.resize = resize

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize is None:
            return x
        return self.resizer.up(x) if self.resize == "up" else self.resizer.down(x)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h: Tensor = self.Conv_0(self._resized(F.silu(self.GroupNorm_0(x))))
        h = h + self.Dense_0(F.silu(temb))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        x = self._resized(x)
        if self.shortcut:
            x = self.Conv_2(x)
        return (x + h) / math.sqrt(2)


class _Channels(nn.Module):
    """A linear map of the channels of each pixel, ``W`` of shape (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(inputs, outputs) / math.sqrt(inputs))
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bct,cd->bdt", x, self.W) + self.b[:, None]


class _Attention(nn.Module):
    """Self-attention of the pixels of an image, one head.

    Written out, not by ``scaled_dot_product_attention``: that may pick another kernel when gradients are recorded,
    and a state that is computed twice must come out the same, bit for bit.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = _norm(channels)
        self.NIN_0 = _Channels(channels, channels)
        self.NIN_1 = _Channels(channels, channels)
        self.NIN_2 = _Channels(channels, channels)
        self.NIN_3 = _Channels(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.GroupNorm_0(x).flatten(2)
        q, k, v = self.NIN_0(h), self.NIN_1(h), self.NIN_2(h)
        share = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(x.shape[1]), dim=-1)
        h = self.NIN_3(v @ share.transpose(1, 2))
        return (x + h.view_as(x)) / math.sqrt(2)


class _ShrunkenInput(nn.Module):
    """Filter, halve and convolve the running image of the NCSN++ encoder; parameters lie under ``Conv2d_0``."""

    def __init__(self, inputs: int, outputs: int, resizer: _Resize) -> None:
        super().__init__()
        self.Conv2d_0 = _conv3(inputs, outputs)
        self.resizer = resizer

    def forward(self, x: Tensor) -> Tensor:
        # The filter runs at full size with a margin of 2 zeros, and the convolution without a margin halves. The two
        # commute, so that this is also what the EDM code computes in the other order.
        weight = self.resizer._weight(x)
        x = F.conv2d(x, weight, padding=self.resizer.margin + 1, groups=x.shape[1])
        return F.conv2d(x, self.Conv2d_0.weight, self.Conv2d_0.bias, stride=2)


class _Fourier(nn.Module):
    """Sine and cosine of 2 pi W label, with W drawn once and never trained."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.W = nn.Parameter(16 * torch.randn(size), requires_grad=False)

    def forward(self, labels: Tensor) -> Tensor:
        angle = 2 * math.pi * self.W * labels[:, None].to(self.W.dtype)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


def _sinusoids(labels: Tensor, size: int) -> Tensor:
    """Sine and cosine of label / 10000^(i/(n-1)), i = 0..n-1, n = size/2; in float32."""
    n = size // 2
    rate = torch.exp(torch.arange(n, dtype=torch.float32, device=labels.device) * (-math.log(10_000) / (n - 1)))
    angle = labels.float()[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class SongUNet(nn.Module):
    """DDPM++, or NCSN++ with ``fir`` and ``residual_input``.

    Arguments:
        image_size: Height and width of images, divisible by 2 for each level but the first.
        channels: Channels of images.
        nf: Width of the first level, a multiple of 4.
        ch_mult: Width of each level, in units of ``nf``.
        num_res_blocks: Residual blocks per level.
        attn_resolutions: Sizes of images at which attention is used.
        fir: Resize with the filter [1, 3, 3, 1].
        residual_input: Add the shrunken input at every level; takes ``fir``.
        embedding: What labels are turned into: ``positional`` sinusoids, or ``fourier`` with random frequencies.
        classes: Number of classes that it is told, as EDM's networks are; 0 for none. A linear map (``map_label``) of
            the one-hot class, scaled by the root of their number, is added to the embedded label.
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        nf: int = 128,
        ch_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 8,
        attn_resolutions: Sequence[int] = (16,),
        *,
        fir: bool = False,
        residual_input: bool = False,
        embedding: Literal["positional", "fourier"] = "positional",
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.nf = nf
        self.embedding = embedding
        self.all_modules = nn.ModuleList()
        self._steps: list[tuple[str, int]] = []
        resizer = _Resize(fir)
        temb = 4 * nf

        if embedding == "fourier":
            self.all_modules.append(_Fourier(nf))
        self.all_modules.append(nn.Linear(2 * nf if embedding == "fourier" else nf, temb))
        self.all_modules.append(nn.Linear(temb, temb))
        self._embedders = len(self.all_modules)
        self.classes = classes
        if classes:
            self.map_label = nn.Linear(classes, 2 * nf if embedding == "fourier" else nf)

        self._add("plain", _conv3(channels, nf))
        self._add("keep")
        skips, width, shrunken = [nf], nf, channels
        sizes = [image_size >> level for level in range(len(ch_mult))]
        for level, (size, factor) in enumerate(zip(sizes, ch_mult, strict=True)):
            for _ in range(num_res_blocks):
                self._add("block", _Block(width, nf * factor, temb, resizer))
                width = nf * factor
                if size in attn_resolutions:
                    self._add("plain", _Attention(width))
                self._add("keep")
                skips.append(width)
            if level < len(ch_mult) - 1:
                self._add("block", _Block(width, width, temb, resizer, "down"))
                if residual_input:
                    self._add("shrink", _ShrunkenInput(shrunken, width, resizer))
                    shrunken = width
                self._add("keep")
                skips.append(width)

        self._add("block", _Block(width, width, temb, resizer))
        self._add("plain", _Attention(width))
        self._add("block", _Block(width, width, temb, resizer))

        for level in reversed(range(len(ch_mult))):
            for _ in range(num_res_blocks + 1):
                self._add("join")
                self._add("block", _Block(width + skips.pop(), nf * ch_mult[level], temb, resizer))
                width = nf * ch_mult[level]
            if sizes[level] in attn_resolutions:
                self._add("plain", _Attention(width))
            if level:
                self._add("block", _Block(width, width, temb, resizer, "up"))
        self.all_modules.append(_norm(width))
        self.all_modules.append(_conv3(width, channels))

    def _add(self, step: str, module: nn.Module | None = None) -> None:
        if module is not None:
            self.all_modules.append(module)
        self._steps.append((step, len(self.all_modules) - 1))

    def _temb(self, labels: Tensor, like: Tensor, classes: Tensor | None) -> Tensor:
        modules = self.all_modules
        embedded = modules[0](labels) if self.embedding == "fourier" else _sinusoids(labels, self.nf)
        if self.classes:
            assert classes is not None
            # A class outside of the range, -1, stands for none: no element is one.
            one_hot = (classes[:, None] == torch.arange(self.classes, device=labels.device)).to(like.dtype)
            embedded = embedded.to(like.dtype) + self.map_label(one_hot * math.sqrt(self.classes))
        first, second = modules[self._embedders - 2], modules[self._embedders - 1]
        temb: Tensor = second(F.silu(first(embedded.to(like.dtype))))
        return temb

    def forward(self, x: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """Output for images ``x`` of shape (B, C, H, W) with noise labels of shape (B,); shape of ``x``.

        Class-conditional networks take the class of each image too, -1 for none, of shape (B,).
        """
        temb = self._temb(labels, x, classes)
        image = x
        skips: list[Tensor] = []
        for step, index in self._steps:
            if step == "keep":
                skips.append(x)
            elif step == "join":
                x = torch.cat([x, skips.pop()], dim=1)
            elif step == "block":
                x = self.all_modules[index](x, temb)
            elif step == "shrink":
                x = image = (self.all_modules[index](image) + x) / math.sqrt(2)
            else:
                x = self.all_modules[index](x)
        output: Tensor = self.all_modules[-1](F.silu(self.all_modules[-2](x)))
        return output
