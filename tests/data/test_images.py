import numpy as np
import pytest
import torch
from PIL import Image

from piip.data.images import ImageFileError, open_picture, read_image, read_size


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert tuple(image.shape[1:]) == ((60, 40) if orientation >= 5 else (40, 60))
    assert read_size(tmp_path / "a.png") == tuple(image.shape[1:])
    corner = torch.from_numpy(np.array(picture))[0, 0]
    y, x = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[
        orientation
    ]
    assert torch.equal(image[:, y, x], corner)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path, picture, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    picture.convert(mode).save(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}").shape == (3, 40, 60)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert torch.equal(read_image(tmp_path / "deep.png")[1], torch.from_numpy((deep >> 8).astype(np.uint8)))
    assert (np.asarray(open_picture(tmp_path / "deep.png"))[..., 1] == deep >> 8).all()


def test_broken_files_are_named(tmp_path, picture):
    for name in ("cut.jpg", "cut.png"):
        picture.save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ImageFileError, match=rf"{name} cannot be read"):
            read_image(tmp_path / name)
    (tmp_path / "text.jpg").write_text("no image")
    for read in (read_image, read_size):
        with pytest.raises(ImageFileError, match=r"text\.jpg cannot be read \(not an image\)"):
            read(tmp_path / "text.jpg")
        with pytest.raises(ImageFileError, match=r"gone\.jpg does not exist"):
            read(tmp_path / "gone.jpg")
