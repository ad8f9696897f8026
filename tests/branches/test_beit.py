import pytest
import timm
import torch

from piip.branches import build_branch
from piip.branches.relative_position import resample_bias_table
from piip.config import BranchConfig
from tests.helpers import fill, relative_error

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}
ARCH = "beitv2_base_patch16_224"


def beit(image_size=224, **changes):
    return build_branch(
        BranchConfig(ARCH, image_size, ((0, 1),), options=SMALL | changes.pop("options", {}), **changes)
    )


def test_blocks_equal_timm_without_class_token():
    model = fill(timm.create_model(ARCH, num_classes=0, **SMALL)).eval()
    branch = beit().eval()
    branch.load_state_dict(branch.adapt_state_dict(model.state_dict()))
    x = torch.randn(1, 196, 48)
    block, ours = model.blocks[0], branch.blocks[0]
    bias = block.attn._get_rel_pos_bias()[:, :, 1:, 1:]
    block.attn.relative_position_bias_table = None
    with torch.no_grad():
        expected = block(x, shared_rel_pos_bias=bias)
        assert relative_error(ours(x, (14, 14)), expected) < 2e-6


def test_bias_depends_only_on_the_offset_and_stretches_to_any_grid():
    bias = fill(beit()).blocks[0].position_bias
    square = bias((14, 14)).unflatten(-1, (14, 14)).unflatten(-3, (14, 14))
    assert torch.equal(square[..., 3, 4, 5, 7], square[..., 8, 2, 10, 5])
    stretched = bias((9, 20))
    assert stretched.shape == (1, 3, 180, 180)
    centre = bias.table[bias.table.shape[0] // 2]
    assert torch.allclose(stretched[0, :, 17, 17], centre, atol=1e-6)


def test_table_keeps_its_values_at_the_same_size_and_drops_the_class_rows():
    table = torch.randn(27 * 27 + 3, 2)
    assert torch.equal(resample_bias_table(table, 14), table[:-3])


@pytest.mark.parametrize("side", [7, 24, 28])
def test_resampled_tables_keep_their_centre_and_symmetry(side):
    pytest.importorskip("scipy")
    offsets = torch.arange(-13.0, 14)
    bump = torch.exp(-(offsets[:, None] ** 2 + offsets**2) / 40).reshape(-1, 1)
    resampled = resample_bias_table(bump, side).view(2 * side - 1, 2 * side - 1)
    assert resampled[side - 1, side - 1] == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(resampled, resampled.T, atol=1e-5)
    assert torch.allclose(resampled, resampled.flip(0), atol=1e-5)
