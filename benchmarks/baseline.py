"""The network computed plainly, in the original's order of operations: the yardstick of every comparison.

It runs a `PIIP`'s own weights with what torch offers without thought for speed, as the published research code does
when nothing is compiled: windows are cut out of and put back into maps of queries, keys and values by unfold and
fold, attention keeps its whole matrix, every scale and gate is a pass of its own, maps are laid out channels first,
and the pyramid grows by transposed convolutions. Networks of plain ViT branches with convolutional merging.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.interaction import Injector, InteractionBlock, InteractionUnit
from piip.network import PIIP
from piip.ops.reference import reference_points
from piip.pyramid import image_pyramid
from piip.tokens import Grid, Tokens


def plain_forward(network: PIIP, image: Tensor) -> tuple[Tensor, ...]:
    """Return what ``network(image)`` returns, for an image (B, 3, H, W) whose sides need no padding."""
    images = image_pyramid(image, network.config.scales())
    tokens = [network.branch(index).embed(resized) for index, resized in enumerate(images)]
    for k, interactions in enumerate(cast(Sequence[InteractionBlock], network.interactions)):
        for index, branch in enumerate(network.config.branches):
            first, last = branch.interaction_indexes[k]
            for block in network.branch(index).blocks[first : last + 1]:
                tokens[index] = tokens[index]._replace(x=_block(block, tokens[index].x, tokens[index].grid))
        for (lower, higher), unit in zip(interactions.pairs, interactions.units.values(), strict=True):
            tokens[lower], tokens[higher] = _unit(cast(InteractionUnit, unit), tokens[lower], tokens[higher])
    merged = _merge(network, tokens)
    return tuple(_level(level, merged) for level in network.levels)


def reference_deformable_attention(
    value: Tensor, grids: Sequence[Grid], reference: Tensor | Grid, offsets: Tensor, logits: Tensor
) -> Tensor:
    """Compute `piip.ops.deformable_attention` level by level with all samples stacked before they are weighted."""
    if not isinstance(reference, Tensor):
        reference = reference_points(reference, value.device)
    offsets, logits = offsets.float(), logits.float()
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    # One by one: copying a list to a GPU would wait for it, and a CUDA graph could not hold it.
    sizes = torch.stack([offsets.new_full((), n) for height, width in grids for n in (width, height)])
    locations = reference.float()[:, :, None, None, None] + offsets / sizes.view(-1, 1, 2)
    batch, _, heads, width = value.shape
    queries, levels, points = weights.shape[1], weights.shape[3], weights.shape[4]
    sampling_grids = 2 * locations - 1
    samples = []
    for level, values in enumerate(value.float().split([h * w for h, w in grids], dim=1)):
        height, length = grids[level]
        feature = values.flatten(2).transpose(1, 2).reshape(batch * heads, width, height, length)
        grid = sampling_grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(feature, grid, padding_mode="zeros", align_corners=False))
    attention = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    stacked = torch.stack(samples, dim=-2).flatten(-2)
    attended = (stacked * attention).sum(-1).view(batch, heads * width, queries)
    return attended.transpose(1, 2).contiguous().to(value.dtype)


def _block(block: Any, x: Tensor, grid: Grid) -> Tensor:
    attended = _attend(block.attn, block.norm1(x), grid, getattr(block, "window_size", None))
    x = x + block.drop_path1(block.ls1(attended))
    hidden = F.gelu(_linear(block.mlp.fc1, block.norm2(x)))
    return x + block.drop_path2(block.ls2(_linear(block.mlp.fc2, hidden)))


def _attend(attention: Any, x: Tensor, grid: Grid, size: int | None) -> Tensor:
    (batch, length, dim), heads = x.shape, attention.num_heads
    qkv = _linear(attention.qkv, x)
    if size is None:
        windows = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        return _linear(attention.proj, _softmax_attention(*windows).transpose(1, 2).reshape(x.shape))
    whole = (grid[0] + -grid[0] % size, grid[1] + -grid[1] % size)
    maps = F.pad(qkv.transpose(1, 2).reshape(batch, 3 * dim, *grid),
                 (0, whole[1] - grid[1], 0, whole[0] - grid[0]))  # fmt: skip
    cut = F.unfold(maps, size, stride=size).view(batch, 3, heads, dim // heads, size * size, -1)
    attended = _softmax_attention(*cut.permute(1, 0, 5, 2, 4, 3))
    folded = F.fold(attended.permute(0, 2, 4, 3, 1).reshape(batch, dim * size * size, -1),
                    whole, size, stride=size)  # fmt: skip
    return _linear(attention.proj, folded[..., : grid[0], : grid[1]].flatten(2).transpose(1, 2))


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v


def _unit(unit: InteractionUnit, lower: Tokens, higher: Tokens) -> tuple[Tokens, Tokens]:
    assert unit.to_lower is not None
    assert unit.to_higher is not None
    return _inject(unit.to_lower, lower, higher), _inject(unit.to_higher, higher, lower)


def _inject(injector: Injector, query: Tokens, source: Tokens) -> Tokens:
    x, grid, attention, ffn = query.x, query.grid, injector.attn, injector.ffn
    assert ffn is not None
    feature = injector.feat_norm(_linear(injector.proj, source.x))
    normed = injector.query_norm(x)
    attended = _deformable(attention, normed, grid, feature, source.grid)
    x = x + cast(Tensor, injector.attn_gate) * attended
    hidden = _linear(ffn.fc1, injector.ffn_norm(x)).transpose(1, 2).reshape(len(x), -1, *grid).contiguous()
    hidden = F.gelu(ffn.dwconv(hidden).flatten(2).transpose(1, 2))
    return query._replace(
        x=x + injector.drop_path(cast(Tensor, injector.ffn_gate) * _linear(ffn.fc2, hidden))
    )


def _deformable(attention: Any, query: Tensor, grid: Grid, feature: Tensor, value_grid: Grid) -> Tensor:
    value = _linear(attention.value_proj, feature).unflatten(-1, (attention.num_heads, -1))
    per_head = (*query.shape[:2], attention.num_heads, 1, attention.num_points)
    offsets = _linear(attention.sampling_offsets, query).view(*per_head, 2)
    logits = _linear(attention.attention_weights, query).view(per_head)
    sampled = reference_deformable_attention(value, [value_grid], grid, offsets, logits)
    return _linear(attention.output_proj, sampled)


def _merge(network: PIIP, tokens: Sequence[Tokens]) -> Tensor:
    merging: Any = network.mergings[0]
    grid = tokens[network.config.output_branch].grid
    total: Any = 0
    for branch, projection, weight in zip(tokens, merging.projections, merging.weights, strict=True):
        feature = projection(branch.to_map().contiguous())
        total = total + weight * F.interpolate(feature.float(), size=grid, mode="bilinear")
    return total


def _level(level: Any, feature: Tensor) -> Tensor:
    for module in level:
        if isinstance(module, nn.ConvTranspose2d):
            weight = module.weight
            feature = F.conv_transpose2d(feature.to(weight.dtype), weight, module.bias, stride=2)
        else:
            feature = module(feature)
    return feature


def _linear(linear: Any, x: Tensor) -> Tensor:
    return F.linear(x, linear.weight, linear.bias)
