"""Rows of the papers' tables (../shared/paper/figures.json) as our descriptions."""

from collections.abc import Mapping
from typing import Any

from piip.config import BranchConfig, InteractionConfig, MergingConfig, PIIPConfig
from piip.cost.conventions import Convention

_SCRIPT_OF_MERGE = {"linear+head": "conv", "linear": "linear", "conv_multi": "hierarchical"}


def config_of(row: Mapping[str, Any]) -> PIIPConfig:
    """Return the network of a row."""
    branches = tuple(_branch(branch, row) for branch in row["branches"])
    kind = _SCRIPT_OF_MERGE.get(row.get("merge"), "none")
    levels = () if row.get("merge") in (None, "none", "heads", "linear") else (1, 2, 3, 4)
    outs = (0, 1, 10) if kind == "hierarchical" else ()
    return PIIPConfig(branches, _interaction(row), MergingConfig(kind, levels, outs), size_divisor=1)


def convention_of_row(row: Mapping[str, Any]) -> Convention:
    """Return what a row's description adds to the network."""
    vits = [branch for branch in row["branches"] if branch["arch"] == "vit"]
    return Convention(
        script=row["counting_script"],
        padded_qkv=vits[0]["padded_qkv"] if vits else None,
        class_head=row.get("merge") != "linear",
        layernorm=any(branch["dim"] == 3200 and branch["norm"] == "ln" for branch in vits),
        idle_blocks=(0, 20, 0) if "adjustment" in row["computed"] else (),
    )


def _interaction(row: Mapping[str, Any]) -> InteractionConfig | None:
    spec = row.get("interaction")
    if not spec or not spec["count"]:
        return None
    links = None
    if not isinstance(spec["directions"], str):
        links = tuple((source + 1, target + 1) for target, source in spec["directions"])
    return InteractionConfig(
        attention="deformable" if spec["attn"] == "deform" else "regular",
        num_heads=spec["heads"],
        num_points=spec["points"],
        value_ratio=spec["deform_ratio"],
        ffn_ratio=spec["cffn_ratio"],
        projection=spec["proj"],
        norm="layernorm" if spec["norms"] else "none",
        links=links,
    )


def _branch(branch: Mapping[str, Any], row: Mapping[str, Any]) -> BranchConfig:
    ranges = tuple(tuple(pair) for pair in branch["interaction_indexes"])
    common: dict[str, Any] = {"image_size": branch["resolution"]}
    if branch["arch"] == "convnext":
        depth = sum(branch["depths"]) + 3
        options = {"dims": tuple(branch["dims"]), "depths": tuple(branch["depths"])}
        ranges = ranges or ((0, depth - 1),)
        return BranchConfig("convnext_tiny", interaction_indexes=ranges, options=options, **common)
    window = branch["windows"]
    extra = branch["pos_tokens"] - (branch["resolution"] // branch["patch"]) ** 2
    clip = row["counting_script"] == "llava"
    return BranchConfig(
        arch=_arch(branch, clip),
        interaction_indexes=ranges or ((0, branch["depth"] - 1),),
        patch_size=branch["patch"],
        window_size=tuple(window) if isinstance(window, list) else window,
        prefix_tokens=branch["class_token"],
        drop_path_decay="linear" if extra == 1 else "constant",
        options=_options(branch, clip),
        **common,
    )


def _arch(branch: Mapping[str, Any], clip: bool) -> str:
    if clip:
        return "vit_base_patch16_clip_224"
    return "internvit_6b" if branch["dim"] == 3200 else "vit_base_patch16_224"


def _options(branch: Mapping[str, Any], clip: bool) -> dict[str, Any]:
    options = {
        "embed_dim": branch["dim"],
        "depth": branch["depth"],
        "num_heads": branch["heads"],
        "mlp_ratio": branch["mlp_ratio"],
        "qkv_bias": branch["qkv_bias"],
        "img_size": 224,
    }
    if branch["layer_scale"]:
        options["init_values"] = 1.0
    if branch["class_token"] and not clip:
        options["no_embed_class"] = True
    return options
