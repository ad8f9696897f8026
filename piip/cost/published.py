"""The papers' way of counting #FLOPs and #Param, to the digit (CONVENTION.md).

Multiply-accumulates of one square image, in three kinds: what hooks on linear, convolution and LayerNorm modules
see; the self-attention of every block; the cross-attention of every interaction. What this leaves out (the 3x3
convolutions of the merging, the pyramid, everything element-wise) is why `piip.cost.executed` exists.
"""

from collections.abc import Iterator
from functools import lru_cache

from piip.config import InteractionConfig, PIIPConfig
from piip.cost.conventions import Convention, Script, script_of
from piip.cost.counted import NUM_CLASSES, CountedBranch, count_branch, count_params, hooked_macs, part
from piip.cost.table import CostTable, PartCost
from piip.interaction import Injector
from piip.meta import on_meta

COUNTED = (
    "Counted as the papers do: linear layers, norms and attention; without the 3x3 convolutions of the merging, "
    "the upsampling of the pyramid and any head but a classifier."
)
SAMPLING = 5
"""Multiply-accumulates per sampling point and channel of the query."""
_APPLIED_TO_SOURCE = ("proj", "feat_norm", "attn.value_proj", "attn.wk", "attn.wv")


def published_cost(config: PIIPConfig, convention: Convention | None = None) -> CostTable:
    """Count a network as the papers do.

    Args:
        config: The network, at its nominal image sizes.
        convention: What the network does not decide (`convention_of` a preset's name); default: nothing special.

    Raises:
        ConfigError: The network cannot be built.
    """
    convention = convention or Convention()
    script = convention.script or script_of(config)
    idle = convention.idle_blocks or (0,) * config.num_branches
    branches = [
        count_branch(branch, script, convention, idle_blocks)
        for branch, idle_blocks in zip(config.branches, idle, strict=True)
    ]
    parts = list(_branches(config, branches, script))
    if config.interaction is not None:
        parts.extend(_interactions(config, config.interaction, branches, script))
    if config.num_branches > 1 and config.merging.kind != "none":
        parts.append(_levels(config, branches) if script == "mmdetection" else _merging(branches))
        if script == "classification" and convention.class_head:
            parts.append(_head(branches))
    return CostTable(tuple(parts), COUNTED)


def _branches(config: PIIPConfig, branches: list[CountedBranch], script: Script) -> Iterator[PartCost]:
    alone = config.num_branches == 1
    own_heads = (
        script != "mmdetection" if alone else (script, config.merging.kind) == ("classification", "none")
    )
    for number, branch in enumerate(branches, start=1):
        for item in [*branch.parts(), *([branch.head(alone)] if own_heads else [])]:
            again = config.shared_weights and number > 1
            yield part(f"branch{number}.{item.name}", item.macs, 0 if again else item.params)


def _interactions(
    config: PIIPConfig, interaction: InteractionConfig, branches: list[CountedBranch], script: Script
) -> Iterator[PartCost]:
    units = core = params = 0
    for k in range(config.num_interactions):
        dims, cells = _after(config, branches, k)
        # LLaVA's script takes the grids of the first interaction for the attention of all.
        _, core_cells = _after(config, branches, 0 if script == "llava" else k)
        for source, target in ((s - 1, t - 1) for s, t in config.links()):
            injector = _injector(dims[target], dims[source], interaction)
            units += _injector_macs(injector, cells[target], cells[source])
            core += _core_macs(interaction, dims[target], core_cells[target], core_cells[source])
            params += count_params(injector)
    yield part("interaction", units, params)
    yield part("interaction.core", core)


def _after(config: PIIPConfig, branches: list[CountedBranch], k: int) -> tuple[list[int], list[int]]:
    """Return the widths and the numbers of tokens of all branches at interaction ``k``."""
    ends = [branch.interaction_indexes[k][1] for branch in config.branches]
    pairs = list(zip(branches, ends, strict=True))
    return [branch.dim(end) for branch, end in pairs], [branch.cells(end) for branch, end in pairs]


def _injector_macs(injector: Injector, query_cells: int, source_cells: int) -> int:
    return hooked_macs(injector, lambda name: source_cells if name in _APPLIED_TO_SOURCE else query_cells)


def _core_macs(interaction: InteractionConfig, dim: int, query_cells: int, source_cells: int) -> int:
    if interaction.attention == "regular":
        return 2 * query_cells * source_cells * dim
    return SAMPLING * query_cells * interaction.num_points * dim


def _merging(branches: list[CountedBranch]) -> PartCost:
    """Return the merging of a classifier, which the script counts for detectors and segmenters too."""
    out_dim = branches[0].dim(-1)
    macs, params = 2 * branches[0].cells(-1) * out_dim, 2 * out_dim
    for branch in branches[1:]:
        dim = branch.dim(-1)
        macs += branch.cells(-1) * (2 * dim + dim * out_dim + 2 * out_dim)
        params += 2 * dim + (dim + 1) * out_dim + 2 * out_dim
    return part("merge", macs, params + len(branches))


def _head(branches: list[CountedBranch]) -> PartCost:
    """Return a norm over the merged map, which the original puts on the last branch's grid, and a classifier."""
    dim, cells = branches[0].dim(-1), branches[-1].cells(-1)
    return part("head", 2 * cells * dim + dim * NUM_CLASSES, 2 * dim + (dim + 1) * NUM_CLASSES)


def _levels(config: PIIPConfig, branches: list[CountedBranch]) -> PartCost:
    """Return the hierarchical merging: at every level a 3x3 convolution of all branches but the first."""
    macs = params = 0
    for k in (*config.merging.out_interactions, config.num_interactions - 1):
        dims, cells = _after(config, branches, k)
        for number, (dim, count) in enumerate(zip(dims, cells, strict=True), start=1):
            conv = 9 * dim * dims[0] if number > 1 else 0
            macs += count * (conv + 2 * dims[0] + dims[0])
            params += conv + 2 * dims[0] + 1
    return part("merge", macs, params)


@lru_cache(maxsize=256)
def _injector(dim: int, source_dim: int, interaction: InteractionConfig) -> Injector:
    with on_meta():
        return Injector(dim, source_dim, interaction)
