r"""The U-Net of improved-diffusion and guided-diffusion (Nichol and Dhariwal, arXiv 2102.09672, appendix A;
Dhariwal and Nichol, arXiv 2105.05233, section 3).

Residual blocks ``x + conv(silu(norm(conv(silu(norm(x)))) (1 + scale) + shift))`` with scale and shift from the time
embedding (adaptive group normalisation), multi-head attention at chosen sizes, and resizing by strided convolutions
or inside residual blocks. Parameters carry the names of the public implementations (``input_blocks``,
``middle_block``, ``output_blocks``, ``time_embed``, ``out``), so that their checkpoints load.
"""  # noqa: D205

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GuidedUNet"]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def _doubled(x: Tensor) -> Tensor:
    # By copying: its gradient is a plain sum, in one order on every device.
    b, c, h, w = x.shape
    return x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)


class _Block(nn.Module):
    """Residual block with the time embedding; resizes its input if ``resize`` says so."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        scale_shift: bool,
        resize: Literal["up", "down"] | None = None,
    ) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs if scale_shift else outputs))
        # The third place is that of dropout, which has no parameters and no effect in evaluation.
        self.out_layers = nn.Sequential(
            _norm(outputs), nn.SiLU(), nn.Identity(), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.scale_shift = scale_shift
        self.resize = resize

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize is None:
            return x
        return _doubled(x) if self.resize == "up" else F.avg_pool2d(x, 2)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.in_layers[2](self._resized(self.in_layers[1](self.in_layers[0](x))))
        embedded = self.emb_layers(temb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = embedded.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + embedded)
        skip: Tensor = self.skip_connection(self._resized(x))
        change: Tensor = self.out_layers[3](self.out_layers[1](h))
        return skip + change


class _Attention(nn.Module):
    """Multi-head self-attention of the pixels of an image.

    ``new_order`` says how the 3 C channels of ``qkv`` are meant: q, k and v of all heads one after another, or one
    head after another with its q, k and v. Written out, not by ``scaled_dot_product_attention``: that may pick
    another kernel when gradients are recorded, and a state that is computed twice must come out the same.
    """

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        self.heads = heads
        self.new_order = new_order

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        b, c = x.shape[:2]
        per_head = c // self.heads
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat))
        if self.new_order:
            q, k, v = qkv.view(b, 3, self.heads, per_head, -1).unbind(1)
        else:
            q, k, v = qkv.view(b, self.heads, 3, per_head, -1).unbind(2)
        scale = per_head**-0.25
        share = torch.softmax((q * scale).transpose(2, 3) @ (k * scale), dim=-1)
        h: Tensor = self.proj_out((v @ share.transpose(2, 3)).reshape(b, c, -1))
        return (flat + h).view_as(x)


class _Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        shrunk: Tensor = self.op(x)
        return shrunk


class _Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        grown: Tensor = self.conv(_doubled(x))
        return grown


class _First(nn.Conv2d):
    """The first convolution, called like the other layers."""

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


def _sinusoids(labels: Tensor, size: int) -> Tensor:
    """Cosine and sine of label / 10000^(i/n), i = 0..n-1, n = size/2; in float32."""
    n = size // 2
    rate = torch.exp(torch.arange(n, dtype=torch.float32, device=labels.device) * (-math.log(10_000) / n))
    angle = labels.float()[:, None] * rate
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class GuidedUNet(nn.Module):
    """The U-Net of improved-diffusion and guided-diffusion.

    Arguments:
        image_size: Height and width of images.
        num_channels: Width that ``channel_mult`` multiplies.
        num_res_blocks: Residual blocks per level.
        channel_mult: Width of each level; times ``num_channels`` a multiple of 32.
        attention_resolutions: Sizes of images at which attention is used.
        num_heads: Attention heads.
        num_head_channels: Channels per head, instead of ``num_heads``; -1 for none.
        num_heads_upsample: Heads on the way up; -1 for ``num_heads``.
        use_scale_shift_norm: Adaptive group normalisation; else the time embedding is added.
        resblock_updown: Resize inside residual blocks; else by convolutions.
        use_new_attention_order: Order of the channels of q, k and v.
        channels: Channels of images.
        learn_sigma: Twice as many output channels, the second half being the variance output.
        classes: Number of classes that it is told, 0 for none; an embedding of the class (``label_emb``) is added to
            that of the time.
    """

    def __init__(
        self,
        image_size: int,
        num_channels: int,
        num_res_blocks: int,
        channel_mult: Sequence[float],
        attention_resolutions: Sequence[int],
        *,
        num_heads: int = 4,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        channels: int = 3,
        learn_sigma: bool = False,
        classes: int = 0,
    ) -> None:
        super().__init__()
        temb = 4 * num_channels
        self.num_channels = num_channels
        self.time_embed = nn.Sequential(nn.Linear(num_channels, temb), nn.SiLU(), nn.Linear(temb, temb))
        self.classes = classes
        if classes:
            self.label_emb = nn.Embedding(classes, temb)
        widths = [int(factor * num_channels) for factor in channel_mult]
        factors = {image_size // size for size in attention_resolutions}

        def block(inputs: int, outputs: int, resize: Literal["up", "down"] | None = None) -> nn.Module:
            return _Block(inputs, outputs, temb, use_scale_shift_norm, resize)

        def attention(width: int, heads: int) -> nn.Module:
            heads = heads if num_head_channels == -1 else width // num_head_channels
            return _Attention(width, heads, use_new_attention_order)

        width = widths[0]
        self.input_blocks = nn.ModuleList([nn.ModuleList([_First(channels, width, 3, padding=1)])])
        skips = [width]
        for level, outputs in enumerate(widths):
            for _ in range(num_res_blocks):
                layers = [block(width, outputs)]
                width = outputs
                if 2**level in factors:
                    layers.append(attention(width, num_heads))
                self.input_blocks.append(nn.ModuleList(layers))
                skips.append(width)
            if level < len(widths) - 1:
                shrink = block(width, width, "down") if resblock_updown else _Down(width)
                self.input_blocks.append(nn.ModuleList([shrink]))
                skips.append(width)

        self.middle_block = nn.ModuleList([block(width, width), attention(width, num_heads), block(width, width)])

        self.output_blocks = nn.ModuleList()
        for level, outputs in reversed(list(enumerate(widths))):
            for i in range(num_res_blocks + 1):
                layers = [block(width + skips.pop(), outputs)]
                width = outputs
                if 2**level in factors:
                    layers.append(attention(width, num_heads if num_heads_upsample == -1 else num_heads_upsample))
                if level and i == num_res_blocks:
                    layers.append(block(width, width, "up") if resblock_updown else _Up(width))
                self.output_blocks.append(nn.ModuleList(layers))
        outputs = 2 * channels if learn_sigma else channels
        self.out = nn.Sequential(_norm(width), nn.SiLU(), nn.Conv2d(widths[0], outputs, 3, padding=1))

    def forward(self, x: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """Output for images (B, C, H, W) with labels (B,): (B, C, H, W), or (B, 2C, H, W) with ``learn_sigma``.

        Class-conditional networks take the class of each image too, shape (B,).
        """
        temb: Tensor = self.time_embed(_sinusoids(labels, self.num_channels).to(x.dtype))
        if self.classes:
            temb = temb + self.label_emb(classes)
        skips = []
        for layers in self.input_blocks:
            for layer in layers:  # type: ignore[attr-defined]
                x = layer(x, temb)
            skips.append(x)
        for layer in self.middle_block:
            x = layer(x, temb)
        for layers in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            for layer in layers:  # type: ignore[attr-defined]
                x = layer(x, temb)
        output: Tensor = self.out(x)
        return output
