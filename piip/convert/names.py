"""Tensor names of the original's networks and ours (SPEC 11)."""

import re

from piip.config import MergingConfig

_RULES = tuple(
    (re.compile(f"^{pattern}$"), replacement)
    for pattern, replacement in (
        (r"w(?P<branch>\d)", "mergings.{merge}.weights.{branch}"),
        (
            r"merge_branch(?P<branch>\d)\.(?P<rest>weight|bias)",
            "mergings.{merge}.projections.{branch}.0.{rest}",
        ),
        (
            r"merge_branch(?P<branch>\d)\.(?P<layer>\d)\.(?P<rest>.+)",
            "mergings.{merge}.projections.{branch}.{layer}.{rest}",
        ),
        (r"intermediate_merging_(?P<k>\d)_w(?P<branch>\d)", "mergings.{k}.weights.{branch}"),
        (
            r"intermediate_merging_(?P<k>\d)_branch(?P<branch>\d)\.(?P<rest>.+)",
            "mergings.{k}.projections.{branch}.{rest}",
        ),
        (r"fpn(?P<level>\d)\.(?P<rest>.+)", "levels.{level}.{rest}"),
        (
            r"interactions\.(?P<k>\d+)\.interaction_units_(?P<lower>\d)(?P<higher>\d)\."
            r"branch(?P<source>[12])to[12]_(?P<part>proj|injector)\.(?P<rest>.+)",
            "interactions.{k}.units.{lower}_{higher}.{direction}.{inner}",
        ),
    )
)

_INJECTOR = (
    ("ca_gamma", "attn_gate"),
    ("ca_weight", "attn_gate"),
    ("cffn_gamma", "ffn_gate"),
    ("cffn_weight", "ffn_gate"),
    ("ffn.dwconv.dwconv.", "ffn.dwconv."),
)

_BRANCH = re.compile(r"^branch(?P<branch>\d)\.(?:clip_model\.|convnext_model\.)?(?P<rest>.+)$")


def split_branch(key: str) -> tuple[int, str] | None:
    """Return the branch's index (from 0) and the name inside it, or None for a tensor of no branch."""
    match = _BRANCH.match(key)
    return (int(match["branch"]) - 1, match["rest"]) if match else None


def network_name(key: str, merging: MergingConfig) -> str | None:
    """Return our name of a tensor outside the branches, or None if the network has no such part.

    Args:
        key: The original's name, without ``backbone.``.
        merging: How the network merges its branches.
    """
    for pattern, template in _RULES:
        match = pattern.match(key)
        if match:
            return _fill(template, match.groupdict(), merging)
    return None


def _fill(template: str, parts: dict[str, str], merging: MergingConfig) -> str | None:
    values: dict[str, object] = dict(parts) | {"merge": len(merging.out_interactions)}
    if "branch" in parts:
        values["branch"] = int(parts["branch"]) - 1
    if "layer" in parts and merging.kind == "linear":
        # The original puts the layers of this kind between permutations, which ours does without.
        values["layer"] = int(parts["layer"]) // 2
    if "level" in parts:
        if int(parts["level"]) not in merging.pyramid_levels:
            return None
        values["level"] = merging.pyramid_levels.index(int(parts["level"]))
    if "source" in parts:
        # Inside a unit the original calls the branch with the lower number 1.
        values["direction"] = "to_lower" if parts["source"] == "2" else "to_higher"
        inner = parts["rest"] if parts["part"] == "injector" else f"proj.{parts['rest']}"
        for theirs, ours in _INJECTOR:
            inner = inner.replace(theirs, ours)
        values["inner"] = inner
    return template.format(**values)
