import pytest
import torch

from piip.errors import ConfigError
from piip.tasks.multimodal import PyramidProjector
from piip.tasks.multimodal.projector import projector_state_dict


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize(("out_grid", "tokens"), [(None, 60), ((4, 4), 16)])
def test_sums_all_branches_at_one_grid(norm, out_grid, tokens):
    projector = PyramidProjector((24, 16, 8), 64, norm, out_grid)
    maps = (torch.randn(2, 24, 3, 5), torch.randn(2, 16, 4, 7), torch.randn(2, 8, 6, 10))
    result = projector(maps)
    assert result.shape == (2, tokens, 64)
    without = projector((torch.zeros_like(maps[0]), *maps[1:]))
    assert not torch.allclose(result, without)


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="multiple of 32"):
        PyramidProjector((24,), 50)
    with pytest.raises(ConfigError, match="choose 'group' or 'layer'"):
        PyramidProjector((24,), 64, "batch")
    with pytest.raises(ConfigError, match="no tensor of a projector"):
        projector_state_dict({"branch1.2.weight": torch.zeros(1)})
