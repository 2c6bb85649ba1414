"""Names of the DDPM++ and NCSN++ weights in the public EDM code (Karras et al., arXiv 2206.00364).

That code holds the same networks as :mod:`defense.denoisers.song_unet` under other names: ``enc.32x32_block0.conv0``
for one of ``all_modules``, attention inside the block before it, q, k and v in one convolution with its output
channels in the order (channel, which of the three), and linear maps of channels transposed. The augmentation input
``map_augment``, which is zero outside training, is left out.
"""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

__all__ = ["from_edm", "is_edm"]

_BLOCK = {
    "norm0": "GroupNorm_0",
    "conv0": "Conv_0",
    "affine": "Dense_0",
    "norm1": "GroupNorm_1",
    "conv1": "Conv_1",
    "skip": "Conv_2",
}


def is_edm(state: Mapping[str, Tensor]) -> bool:
    """Return whether the names are those of the EDM code."""
    return any(key.removeprefix("model.").startswith("enc.") for key in state)


def _modules(
    image_size: int, levels: int, num_res_blocks: int, attn_resolutions: Sequence[int], residual_input: bool
) -> Iterator[tuple[str, str]]:
    """Kind and EDM name of each of ``all_modules`` after the embedding, in order."""
    sizes = [f"{image_size >> level}x{image_size >> level}" for level in range(levels)]
    attended = [image_size >> level in attn_resolutions for level in range(levels)]
    yield "layer", "map_layer0"
    yield "layer", "map_layer1"
    yield "layer", f"enc.{sizes[0]}_conv"
    for level, size in enumerate(sizes):
        if level:
            yield "block", f"enc.{size}_down"
            if residual_input:
                yield "residual", f"enc.{size}_aux_residual"
        for i in range(num_res_blocks):
            yield "block", f"enc.{size}_block{i}"
            if attended[level]:
                yield "attention", f"enc.{size}_block{i}"
    yield "block", f"dec.{sizes[-1]}_in0"
    yield "attention", f"dec.{sizes[-1]}_in0"
    yield "block", f"dec.{sizes[-1]}_in1"
    for level in reversed(range(levels)):
        if level < levels - 1:
            yield "block", f"dec.{sizes[level]}_up"
        for i in range(num_res_blocks + 1):
            yield "block", f"dec.{sizes[level]}_block{i}"
        if attended[level]:
            yield "attention", f"dec.{sizes[level]}_block{num_res_blocks}"
    yield "layer", f"dec.{sizes[0]}_aux_norm"
    yield "layer", f"dec.{sizes[0]}_aux_conv"


def from_edm(
    state: Mapping[str, Tensor],
    *,
    image_size: int,
    levels: int,
    num_res_blocks: int,
    attn_resolutions: Sequence[int],
    residual_input: bool,
) -> dict[str, Tensor]:
    """Return the same weights under the names of :class:`~defense.denoisers.song_unet.SongUNet`.

    Arguments:
        state: Tensors of the EDM network, with or without the prefix ``model.`` of its preconditioner.
        image_size: See :class:`~defense.denoisers.song_unet.SongUNet`.
        levels: Number of levels, the length of its ``ch_mult``.
        num_res_blocks: See there.
        attn_resolutions: See there.
        residual_input: See there.

    Returns:
        Tensors by their new names; those that the described network does not have keep their names.
    """
    rest = {key.removeprefix("model."): value for key, value in state.items()}
    rest = {k: v for k, v in rest.items() if not k.endswith("resample_filter") and k != "map_augment.weight"}
    named: dict[str, Tensor] = {}

    def move(old: str, new: str) -> None:
        for kind in ("weight", "bias"):
            if f"{old}.{kind}" in rest:
                named[f"{new}.{kind}"] = rest.pop(f"{old}.{kind}")

    first = 0
    if "map_noise.freqs" in rest:
        named["all_modules.0.W"] = rest.pop("map_noise.freqs")
        first = 1
    modules = _modules(image_size, levels, num_res_blocks, attn_resolutions, residual_input)
    for index, (kind, old) in enumerate(modules, start=first):
        new = f"all_modules.{index}"
        if kind == "layer":
            move(old, new)
        elif kind == "residual":
            move(old, f"{new}.Conv2d_0")
        elif kind == "block":
            for part, ours in _BLOCK.items():
                move(f"{old}.{part}", f"{new}.{ours}")
        elif f"{old}.qkv.weight" in rest:
            move(f"{old}.norm2", f"{new}.GroupNorm_0")
            weight, bias = rest.pop(f"{old}.qkv.weight"), rest.pop(f"{old}.qkv.bias")
            for which in range(3):
                named[f"{new}.NIN_{which}.W"] = weight[which::3, :, 0, 0].T.contiguous()
                named[f"{new}.NIN_{which}.b"] = bias[which::3].contiguous()
            named[f"{new}.NIN_3.W"] = rest.pop(f"{old}.proj.weight")[:, :, 0, 0].T.contiguous()
            named[f"{new}.NIN_3.b"] = rest.pop(f"{old}.proj.bias")
    return named | rest
