import pickle

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from piip.branches import build_branch
from piip.config import BranchConfig
from piip.errors import CheckpointError
from piip.weights import load_exactly, load_pretrained, read_state_dict
from tests.helpers import fill, relative_error

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}


class Dangerous:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (pickle.loads, (pickle.dumps("ran"),))


def branch(**changes):
    settings = {
        "arch": "vit_tiny_patch16_224",
        "image_size": 224,
        "interaction_indexes": ((0, 1),),
        "options": SMALL,
    }
    return build_branch(BranchConfig(**(settings | changes)))


def trunk_file(path, **options):
    model = fill(timm.create_model("vit_tiny_patch16_224", num_classes=10, **(SMALL | options)))
    save_file(model.state_dict(), path)
    return model


@pytest.mark.parametrize("wrappers", [(), ("state_dict",), ("module",), ("model",), ("state_dict", "model")])
def test_containers_around_tensors_are_taken_off(tmp_path, wrappers):
    content = {"a.weight": torch.ones(2)}
    for wrapper in wrappers:
        content = {wrapper: content, "epoch": 3}
    torch.save(content, tmp_path / "file.pth")
    assert read_state_dict(tmp_path / "file.pth")["a.weight"].tolist() == [1, 1]


def test_old_format_files_are_read(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert list(read_state_dict(tmp_path / "old.pth")) == ["a"]


def test_files_that_would_run_code_are_refused(tmp_path):
    torch.save({"a": torch.ones(1), "b": Dangerous()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="which can run foreign code; save only its state_dict"):
        read_state_dict(tmp_path / "bad.pth")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.pth", None, "There is no checkpoint file"),
        ("text.pth", b"hello", "no PyTorch checkpoint"),
        ("empty.pth", b"", "no PyTorch checkpoint"),
        ("zip.pth", b"PK\x03\x04broken", "no PyTorch checkpoint"),
        ("text.safetensors", b"hello", "damaged or no safetensors file"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(tmp_path / name)


def test_truncated_files_are_named(tmp_path):
    for name, write in (("a.pth", torch.save), ("a.safetensors", save_file)):
        write({"a": torch.ones(1000)}, tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match="damaged"):
            read_state_dict(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "holds no named tensors"),
        ({"a": torch.tensor([float("nan")])}, "a in .* holds NaN or infinity"),
    ],
)
def test_useless_contents_are_named(tmp_path, content, message):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(tmp_path / "file.pth")


def test_pretrained_file_is_resampled_to_the_branch(tmp_path):
    model = trunk_file(tmp_path / "vit.safetensors", patch_size=14, img_size=112)
    ours = branch(patch_size=16, options=SMALL | {"img_size": 224})
    load_pretrained(ours, str(tmp_path / "vit.safetensors"))
    assert ours.pos_embed.shape == (1, 196, 48)
    assert torch.equal(ours.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)
    kernel = torch.nn.functional.interpolate(model.patch_embed.proj.weight, size=(16, 16), mode="bicubic")
    assert torch.equal(ours.patch_embed.proj.weight, kernel)


def test_gates_that_a_file_lacks_become_one(tmp_path):
    trunk_file(tmp_path / "vit.safetensors")
    ours = branch(options=SMALL | {"init_values": 1e-5})
    load_pretrained(ours, str(tmp_path / "vit.safetensors"))
    assert torch.equal(ours.blocks[0].ls1.gamma, torch.ones(48))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SMALL | {"embed_dim": 96}, "of another shape"),
        (SMALL | {"qkv_bias": False}, "unknown or of another shape"),
    ],
)
def test_weights_of_another_architecture_are_refused(tmp_path, options, message):
    trunk_file(tmp_path / "vit.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(branch(options=options), str(tmp_path / "vit.safetensors"))


def test_unknown_pretrained_names_get_the_nearest():
    with pytest.raises(CheckpointError, match=r"Did you mean 'vit_tiny_patch16_224\.augreg_in21k'"):
        load_pretrained(branch(), "vit_tiny_patch16_224.augreg_in21")


def test_failing_downloads_are_one_sentence(monkeypatch):
    def offline(*args, **options):
        raise OSError("no route to host")

    ours = branch()
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        CheckpointError, match=r"could not be downloaded .*check the network, or give a local file"
    ):
        load_pretrained(ours, "vit_tiny_patch16_224.augreg_in21k")


def test_loading_exactly_lists_every_difference():
    model = torch.nn.Linear(2, 3)
    with pytest.raises(
        CheckpointError, match=r"1 unknown: b; 1 missing: bias; 1 of another shape: weight \(2, 2\)"
    ):
        load_exactly(model, {"weight": torch.zeros(2, 2), "b": torch.zeros(1)})


def test_real_deit_weights_load(shared):
    """Real weights give real features: rows of one image are closer than those of different images."""
    file = next((shared / "data" / "deit_tiny").glob("*.safetensors"))
    ours = build_branch(BranchConfig("deit_tiny_patch16_224", 224, ((0, 11),)))
    load_pretrained(ours, str(file))
    theirs = timm.create_model("deit_tiny_patch16_224")
    theirs.load_state_dict({k: v.float() for k, v in load_file(file).items()}, strict=True)
    assert relative_error(ours.pos_embed, theirs.pos_embed[:, 1:]) < 1e-6
    assert torch.equal(ours.blocks[11].attn.qkv.weight, theirs.blocks[11].attn.qkv.weight)
