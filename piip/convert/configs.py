"""The original's configuration dictionaries as our descriptions (SPEC 3 to 9 and 14)."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from piip.config import BranchConfig, InteractionConfig, MergingConfig, PIIPConfig
from piip.convert.names import split_branch
from piip.errors import CheckpointError

Config = Mapping[str, Any]
State = Mapping[str, Tensor]

CLIP_HEAD_DIM = 64


def network_config(config: Config, state: State) -> PIIPConfig:
    """Return our description of a network of the original.

    Args:
        config: ``cls`` ("<sub-project> <class>", sub-project mmdet, mmseg, classification or llava) and the
            arguments of the original's class.
        state: Its tensors. Shapes that a file on the original author's disk decided are read from here.

    Raises:
        CheckpointError: The configuration is not one of a PIIP network or has no equivalent.
    """
    project = sub_project(config)
    branches = _branch_dicts(config)
    if project == "mmseg" and len(branches) > 2:
        raise CheckpointError(
            "The three-branch segmentation class resizes from branch 2, which no released model uses; only two "
            "branches can be converted."
        )
    sizes = [branch[_size_key(project)] for branch in branches]
    if max(sizes) > sizes[-1]:
        raise CheckpointError(
            f"The last branch reads {sizes[-1]} pixels and another one {max(sizes)}; the original merges at the "
            "last branch's grid and piip at the largest, so such a network cannot be converted."
        )
    return PIIPConfig(
        branches=tuple(
            _branch_config(project, branch, _inside(state, index), config)
            for index, branch in enumerate(branches)
        ),
        interaction=_interaction_config(config),
        merging=_merging_config(project, config),
        size_divisor=1,
    )


def sub_project(config: Config) -> str:
    """Return the sub-project of the original that a configuration belongs to."""
    project = str(config.get("cls", "")).split(" ")[0]
    if project not in {"mmdet", "mmseg", "classification", "llava"}:
        raise CheckpointError(
            f"config['cls'] is {config.get('cls')!r}; give '<sub-project> <class>' with the sub-project mmdet, "
            "mmseg, classification or llava."
        )
    return project


def _size_key(project: str) -> str:
    return "img_size" if project in {"classification", "llava"} else "real_size"


def _branch_dicts(config: Config) -> list[Config]:
    count = sum(bool(re.fullmatch(r"branch\d", key)) for key in config)
    if not count:
        raise CheckpointError("The configuration has no branch1; it is not one of a PIIP network.")
    return [config[f"branch{number}"] for number in range(1, count + 1)]


def _inside(state: State, index: int) -> dict[str, Tensor]:
    inside = {}
    for key, value in state.items():
        part = split_branch(key)
        if part is not None and part[0] == index:
            inside[part[1]] = value
    if not inside:
        raise CheckpointError(f"The checkpoint has no tensors of branch{index + 1}.")
    return inside


def _interaction_config(config: Config) -> InteractionConfig:
    return InteractionConfig(
        attention="regular" if config.get("interact_attn_type", "normal") == "normal" else "deformable",
        num_heads=config["deform_num_heads"],
        num_points=config["n_points"],
        value_ratio=config.get("deform_ratio", 1.0),
        ffn_ratio=config.get("cffn_ratio", 0.25) if config.get("with_cffn", False) else None,
        projection=config.get("interaction_proj", True),
        norm="none" if config.get("norm_layer") == "none" else "layernorm",
        drop_path_rate=config.get("interaction_drop_path_rate", 0.0),
    )


def _merging_config(project: str, config: Config) -> MergingConfig:
    if project == "llava" or config.get("separate_head"):
        return MergingConfig("none", pyramid_levels=())
    if project == "classification":
        return MergingConfig("linear", pyramid_levels=())
    if config.get("with_simple_fpn", True):
        return MergingConfig("conv", pyramid_levels=(2, 3, 4) if config.get("is_dino") else (1, 2, 3, 4))
    return MergingConfig("hierarchical", out_interactions=tuple(config["out_interaction_indexes"]))


def _branch_config(project: str, branch: Config, state: State, config: Config) -> BranchConfig:
    ranges = tuple((first, last) for first, last in branch["interaction_indexes"])
    common: dict[str, Any] = {
        "image_size": branch[_size_key(project)],
        "interaction_indexes": ranges,
        "drop_path_rate": branch.get("drop_path_rate", 0.0),
    }
    pretrained = str(branch.get("pretrained"))
    if project == "llava":
        if branch.get("model_type", "clip_hf") == "convnext_timm":
            return _convnext(common, branch, state)
        return _clip(common, branch, state, config.get("tiny_clip", {}).get(pretrained))
    if project == "classification":
        augreg = branch.get("model_type", "deit") == "augreg"
        return _internvit_class(common, branch, state, True) if augreg else _deit(common, branch, state, True)
    if "deit" in pretrained:
        return _deit(common, branch, state, False)
    if project == "mmdet":
        for word, family in (("beit", _beit), ("perceiver", _uniperceiver), ("convnext", _convnext)):
            if word in pretrained:
                return family(common, branch, state)
    return _internvit_class(common, branch, state, False)


def _vit_options(branch: Config, state: State) -> dict[str, Any]:
    """Return the shape of a transformer; widths come from the tensors (SPEC 15, quirk 2)."""
    patch = state["patch_embed.proj.weight"]
    options: dict[str, Any] = {
        "embed_dim": patch.shape[0],
        "depth": branch["depth"],
        "num_heads": branch["num_heads"],
        "mlp_ratio": branch.get("mlp_ratio", 4.0),
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
    }
    if "fused_mlp" in (branch.get("mlp_type"), branch.get("Mlp_block")):
        options["act_layer"] = "gelu_tanh"
    return options


def _position_options(state: State) -> dict[str, Any]:
    """Return the image size whose grid the position embeddings have; they are square but for a class slot."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    return {"img_size": math.isqrt(state["pos_embed"].shape[1]) * patch}


def _windows(branch: Config) -> tuple[int | None, ...] | None:
    flags = branch.get("window_attn", False)
    flags = flags if isinstance(flags, list | tuple) else [flags] * branch["depth"]
    sizes = branch.get("window_size", 14)
    sizes = sizes if isinstance(sizes, list | tuple) else [sizes] * branch["depth"]
    windows = tuple(size if flag is True else None for flag, size in zip(flags, sizes, strict=True))
    return windows if any(windows) else None


def _deit(common: dict[str, Any], branch: Config, state: State, classification: bool) -> BranchConfig:
    options = _vit_options(branch, state) | _position_options(state)
    options |= {"init_values": branch.get("init_scale", 1e-4)}
    if classification:
        options["no_embed_class"] = True
    return BranchConfig(
        arch="vit_base_patch16_224",
        patch_size=branch["patch_size"],
        window_size=_windows(branch),
        window_padding="before_qkv" if branch.get("use_flash_attn", False) else "after_qkv",
        prefix_tokens="cls_token" in state,
        drop_path_decay="constant",
        options=options,
        **common,
    )


def _internvit_class(
    common: dict[str, Any], branch: Config, state: State, classification: bool
) -> BranchConfig:
    """Return a branch of the original's InternViT6B class, which also holds MAE, AugReg and DINOv2 weights."""
    options = _vit_options(branch, state) | _position_options(state)
    options["init_values"] = branch.get("init_values", None if classification else 0.1)
    if classification:
        options["no_embed_class"] = True
    rms = "blocks.0.norm1.bias" not in state
    qk_norm = "blocks.0.attn.q_norm.weight" in state
    arch = "vit_base_patch16_224"
    if rms or qk_norm:
        arch = "internvit_6b"
        options |= {"norm_layer": "rmsnorm" if rms else "layernorm", "qk_norm": qk_norm}
        options["class_token"] = "cls_token" in state
    return BranchConfig(
        arch=arch,
        patch_size=branch["patch_size"],
        window_size=_windows(branch),
        prefix_tokens="cls_token" in state,
        drop_path_decay="constant" if classification else "linear",
        options=options,
        **common,
    )


def _beit(common: dict[str, Any], branch: Config, state: State) -> BranchConfig:
    options = _vit_options(branch, state) | {"init_values": branch.get("init_values", 1e-6)}
    options["qkv_bias"] = "blocks.0.attn.q_bias" in state
    return BranchConfig(
        arch="beitv2_base_patch16_224",
        patch_size=branch["patch_size"],
        window_size=_windows(branch),
        options=options,
        **common,
    )


def _uniperceiver(common: dict[str, Any], branch: Config, state: State) -> BranchConfig:
    kernel = state["visual_embed.patch_embed.proj.weight"]
    positions = state["visual_embed.patch_embed.spatial_pos_embed.weight"]
    return BranchConfig(
        arch="uniperceiver_base",
        patch_size=branch["patch_size"],
        window_size=_windows(branch),
        options={
            "embed_dim": kernel.shape[0],
            "depth": branch["depth"],
            "num_heads": branch["num_heads"],
            "mlp_ratio": branch.get("mlp_ratio", 4.0),
            "img_size": math.isqrt(len(positions)) * kernel.shape[-1],
        },
        **common,
    )


def _clip(common: dict[str, Any], branch: Config, state: State, tiny: Config | None) -> BranchConfig:
    kernel = state["embeddings.patch_embedding.weight"]
    width, patch = kernel.shape[0], kernel.shape[-1]
    depth = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layers."))
    hidden = len(state["encoder.layers.0.mlp.fc1.weight"])
    activation = tiny["hidden_act"] if tiny else "quick_gelu"
    return BranchConfig(
        arch="vit_base_patch16_clip_quickgelu_224",
        patch_size=patch,
        prefix_tokens=branch.get("use_cls_token", False),
        options={
            "embed_dim": width,
            "depth": depth,
            "num_heads": tiny["num_attention_heads"] if tiny else width // CLIP_HEAD_DIM,
            "mlp_ratio": hidden / width,
            "act_layer": activation,
            "img_size": math.isqrt(len(state["embeddings.position_embedding.weight"])) * patch,
        },
        **common,
    )


def _convnext(common: dict[str, Any], branch: Config, state: State) -> BranchConfig:
    """Return a ConvNeXt branch; widths and depths are those of the tensors (timm's or transformers' names)."""
    pattern = re.compile(r"(?:encoder\.)?stages\.(\d)\.(?:blocks|layers)\.(\d+)\.(?:conv_dw|dwconv)\.weight")
    dims, depths = [0] * 4, [0] * 4
    for key, value in state.items():
        match = pattern.fullmatch(key)
        if match:
            stage = int(match[1])
            dims[stage] = len(value)
            depths[stage] = max(depths[stage], int(match[2]) + 1)
    return BranchConfig(
        arch="convnext_tiny", options={"dims": tuple(dims), "depths": tuple(depths)}, **common
    )
