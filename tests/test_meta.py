import pytest
import torch

from piip import presets
from piip.meta import on_meta
from piip.network import PIIP


@pytest.mark.parametrize("name", ["piip_nano", "piip_ct_cs_cb_1024_672_448", "piip_b_512_256_128_cls"])
def test_a_network_has_the_shapes_it_has_anywhere(name):
    config = presets.get_config(name)
    with torch.device("meta"):
        plain = PIIP(config).state_dict()
    with on_meta():
        state = PIIP(config).state_dict()
    assert all(tensor.is_meta for tensor in state.values())
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in state.items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in plain.items()
    }


def test_memory_elsewhere_is_filled():
    with on_meta():
        tensor = torch.ones(3, device="cpu").mul_(2).add_(1)
        assert torch.ones(3).mul_(2).is_meta
    assert tensor.tolist() == [3, 3, 3]
    assert torch.zeros(2).add_(1).tolist() == [1, 1]


def test_filling_passes_on_the_tensor():
    with on_meta():
        tensor = torch.empty(2, 3)
        assert tensor.normal_() is tensor
        assert torch.nn.init.zeros_(tensor) is tensor
