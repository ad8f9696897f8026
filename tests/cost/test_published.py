import json
import math
from functools import cache
from pathlib import Path

import pytest

from piip import presets
from piip.config import BranchConfig, InteractionConfig, MergingConfig, PIIPConfig
from piip.cost.conventions import Convention, convention_of
from piip.cost.published import published_cost
from tests.conftest import find_shared
from tests.cost.rows import config_of, convention_of_row

ROWS_OF_PRESETS = json.loads((Path(__file__).parent / "figures_min.json").read_text())
# Printed figures that no setting of the scripts reproduces (CONVENTION.md, section 7).
NOT_REPRODUCED = {
    ("v1-T3/det/PIIP-LH6B/1280-1024-256", "params"),
    ("README/seg/InternViT-6B", "params"),
    ("v1-T5/ViT-B", "flops"),
    ("v1-T5/ViT-L", "flops"),
    ("cls/DeiT-B", "flops"),
    ("llava/PIIP-LLaVA_ConvNeXt-B_CLIP-L_1024-336_13B", "flops"),
    ("llava/PIIP-LLaVA_ConvNeXt-L_CLIP-L_1024-336_13B", "flops"),
}
# Rows without printed figures, which were computed without padding; ours follow the released AugReg row.
VARIANTS = {
    "README-variants/augreg": "piip_sbl_1568_1120_672_augreg",
    "README-variants/dinov2": "piip_sbl_1568_1120_672_dinov2",
    "README-variants/mae": "piip_sbl_1568_1120_672_mae",
    "README-variants/beit": "piip_sbl_1568_1120_672_beit",
    "README-variants/uniperceiver": "piip_sbl_1568_1120_672_uniperceiver",
}


@cache
def figures():
    shared = find_shared()
    rows = json.loads((shared / "paper/figures.json").read_text())["rows"] if shared else []
    return {row["id"]: row for row in rows if "computed" in row}


def prints(count, unit, printed):
    """Return whether a count is printed like this: one decimal, which the tables round or cut off."""
    script = round(count / unit, 1)
    return printed in {script, math.floor(script), math.floor(script + 0.5)}


@pytest.fixture
def all_rows(shared):
    return figures()


def test_all_rows_are_there(all_rows):
    assert len(all_rows) == 107
    assert {row["row"] for row in ROWS_OF_PRESETS} | set(VARIANTS) | {"scratch/ViT-B"} == set(all_rows)


@pytest.mark.parametrize("name", figures() or [None])
def test_rows_of_the_papers_tables(name, shared):
    row = figures()[name]
    computed, published = row["computed"], row["published"]
    table = published_cost(config_of(row), convention_of_row(row))
    assert (table.macs, table.params) == (computed["flops"], computed["params"])
    adjusted = "branch2.blocks" if "adjustment" in computed else None
    for part in table.parts:
        expected = computed["flops_by_part_G"][part.name]
        expected += computed["adjustment_G"] if part.name == adjusted else 0
        assert part.macs / 1e9 == pytest.approx(expected, abs=1.1e-3), part.name
        assert part.params / 1e6 == pytest.approx(computed["params_by_part_M"].get(part.name, 0), abs=6e-4), (
            part.name
        )
    for key, count, unit in (("flops", table.macs, 1e9), ("params", table.params, 1e6)):
        printed = published.get("flops_G" if key == "flops" else "params_M")
        if printed is not None:
            assert prints(count, unit, printed) == ((name, key) not in NOT_REPRODUCED)
        assert (row[f"match_{key}"] == "off") == ((name, key) in NOT_REPRODUCED)


@pytest.mark.parametrize("row", ROWS_OF_PRESETS, ids=lambda row: row["row"])
def test_presets_reproduce_the_rows_that_they_stand_for(row):
    table = published_cost(presets.get_config(row["preset"]), convention_of(row["preset"]))
    assert (table.macs, table.params) == (row["flops"], row["params"])
    for key, count, unit in (("flops", table.macs, 1e9), ("params", table.params, 1e6)):
        printed = row["flops_G" if key == "flops" else "params_M"]
        if printed is not None:
            assert prints(count, unit, printed) == ((row["row"], key) not in NOT_REPRODUCED)


@pytest.mark.parametrize("name", VARIANTS.values())
def test_variants_without_a_figure_cost_what_deit_costs(name):
    deit = published_cost(presets.get_config("piip_sbl_1568_1120_672"))
    assert published_cost(presets.get_config(name), Convention(padded_qkv=False)).macs == deit.macs
    assert published_cost(presets.get_config(name)).macs > deit.macs


def test_the_worked_example():
    table = published_cost(presets.get_config("piip_tsb_1120_896_448"))
    expected = {
        "branch1.embed": (0.463, 1.193),
        "branch1.blocks": (66.618, 85.073),
        "branch1.attn": (2.832, 0),
        "branch2.embed": (0.926, 1.5),
        "branch2.blocks": (66.647, 21.303),
        "branch2.attn": (5.665, 0),
        "branch3.embed": (0.723, 1.088),
        "branch3.blocks": (26.056, 5.343),
        "branch3.attn": (4.426, 0),
        "interaction": (66.155, 29.722),
        "interaction.core": (0.948, 0),
        "merge": (1.665, 0.45),
        "head": (0.008, 0.771),
    }
    assert {p.name: (round(p.macs / 1e9, 3), round(p.params / 1e6, 3)) for p in table.parts} == expected
    assert table.macs == 243_132_125_952
    assert table.params == table.trainable == 146_441_707


def test_a_tiny_network_by_hand():
    options = {"embed_dim": 32, "depth": 1, "num_heads": 2, "init_values": 1.0}
    branch = BranchConfig("vit_tiny_patch16_224", 64, ((0, 0),), drop_path_decay="constant", options=options)
    two = PIIPConfig(
        (branch, branch), InteractionConfig(num_heads=4), MergingConfig("none", ()), size_divisor=1
    )
    tokens, dim = 16, 32
    table = published_cost(two)
    assert table["branch1.embed"].macs == tokens * (3 * 256 * dim + dim)
    assert table["branch2.blocks"].macs == tokens * (12 * dim**2 + 4 * dim)
    assert table["branch2.attn"].macs == 2 * tokens**2 * dim
    one_way = (
        tokens * dim * dim  # projection
        + 6 * tokens * dim  # norms
        + tokens * dim * 4 * 4 * 3  # offsets and weights
        + 2 * tokens * dim * dim // 2  # values and output
        + 2 * tokens * dim * 8  # feed-forward
        + tokens * (9 * 8 + 8)
    )
    assert table["interaction"].macs == 2 * one_way
    assert table["interaction.core"].macs == 2 * 5 * tokens * 4 * dim
    assert table["branch1.head"].macs == 2 * tokens * dim + dim * 1000


def test_shared_weights_are_counted_once():
    shared = published_cost(presets.get_config("piip_bbb_896_448_224_shared"))
    apart = published_cost(presets.get_config("piip_bbb_896_448_224_k0"))
    assert shared.macs == apart.macs
    assert shared["branch2.blocks"].params == 0 < apart["branch2.blocks"].params


def test_tables_read_well():
    table = published_cost(presets.get_config("vit_b_1024"))
    assert json.loads(json.dumps(table.to_dict()))["total"]["macs"] == 463_413_688_320
    lines = table.to_text().splitlines()
    assert lines[0].split() == ["part", "GMACs", "share", "params", "(M)", "trainable", "(M)"]
    assert lines[-2].split() == ["total", "463.414", "100.0%", "89.580", "89.580"]
    assert lines[-1].startswith("Counted as the papers do")
    with pytest.raises(KeyError, match="nothing"):
        table["nothing"]
