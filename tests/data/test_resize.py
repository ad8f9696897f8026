import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from piip.data.geometry import ImageMeta, scale_factor
from piip.data.resize import keep_ratio_size, resize_image, resize_mask
from piip.errors import ConfigError, DataError


def _reference(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The scheme of HEADS 1 pixel by pixel, as plainly as possible."""

    def taps(k, old, new):
        f = np.float32((k + 0.5) * (old / new) - 0.5)
        s = int(np.floor(f))
        return s, np.float32(f - np.float32(s))

    def weights(f):
        scale = np.float32(2048)
        return int(np.rint((np.float32(1) - f) * scale)), int(np.rint(f * scale))

    height, width = image.shape
    out = np.zeros(size, np.uint8)
    for y in range(size[0]):
        top, f = taps(y, height, size[0])
        b0, b1 = weights(f)
        rows = [min(max(r, 0), height - 1) for r in (top, top + 1)]
        for x in range(size[1]):
            left, f = taps(x, width, size[1])
            if left < 0 or left >= width - 1:
                left, f = min(max(left, 0), width - 1), np.float32(0)
            a0, a1 = weights(f)
            right = min(left + 1, width - 1)
            upper, lower = (int(image[r, left]) * a0 + int(image[r, right]) * a1 for r in rows)
            out[y, x] = (((b0 * (upper >> 4)) >> 16) + ((b1 * (lower >> 4)) >> 16) + 2) >> 2
    return out


SIDE = st.integers(1, 23)


@settings(max_examples=40)
@given(SIDE, SIDE, SIDE, SIDE, st.integers(0, 2**31))
def test_exact_resize_is_the_written_scheme(height, width, new_height, new_width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    got = resize_image(torch.from_numpy(image)[None], (new_height, new_width), "exact")
    np.testing.assert_array_equal(got[0].numpy(), _reference(image, (new_height, new_width)))


@pytest.mark.parametrize("case", ["up_landscape", "up_portrait", "down", "inet", "same", "short_limit"])
def test_exact_resize_equals_opencv(shared, case):
    tensors = load_file(shared / "golden/heads/transforms.safetensors")
    expected = tensors[f"{case}.resized_bgr"].permute(2, 0, 1)
    source = tensors[f"{case}.bgr"].permute(2, 0, 1)
    assert torch.equal(resize_image(source, tuple(expected.shape[1:]), "exact"), expected)


@pytest.mark.parametrize("size", [(40, 50), (90, 131), (64, 30)])
def test_fast_resize_is_one_grey_level_away(size):
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    exact, fast = (resize_image(image, size, method).int() for method in ("exact", "fast"))
    assert (exact - fast).abs().max() <= 1


def test_antialias_filters_when_shrinking():
    image = torch.randint(0, 256, (3, 120, 120), dtype=torch.uint8)
    small = resize_image(image, (20, 20), "antialias").float()
    assert small.std() < resize_image(image, (20, 20), "fast").float().std() / 2


def test_sizes_of_all_scales(shared):
    golden = json.loads((shared / "golden/heads/transforms.json").read_text())
    for row in golden["sizes"]:
        size = keep_ratio_size(row["h"], row["w"], tuple(golden["scales"][row["scale"]]))
        assert size == (row["new_h"], row["new_w"])
        assert scale_factor((row["h"], row["w"]), size) == tuple(row["scale_factor"][:2])


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 2000), st.integers(1, 2000))
def test_kept_ratio_fits_and_touches_the_limits(height, width, first, second):
    long, short = max(first, second), min(first, second)
    new = keep_ratio_size(height, width, (first, second))
    assert new == keep_ratio_size(height, width, (second, first))
    assert max(new) <= long
    assert min(new) <= short
    assert max(new) == long or min(new) == short


@given(st.integers(1, 40), st.integers(1, 40))
def test_masks_follow_the_nearest_rule(old, new):
    mask = torch.arange(old)[None, :].expand(3, old)
    expected = [int(i * old / new + 1e-9) for i in range(new)]
    assert resize_mask(mask, (3, new))[0].tolist() == expected


def test_meta_rounds_its_scale_to_float32():
    meta = ImageMeta.of(7, "a.jpg", (427, 640), (672, 1007))
    assert meta.scale_factor == (1.5734374523162842, 1.573770523071289)
    assert meta.scale_factor == tuple(float(np.float32(v)) for v in (1007 / 640, 672 / 427))


def test_bad_input_is_refused():
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ConfigError, match=r"'exakt'.*'exact'"):
        resize_image(image, (2, 2), "exakt")
    with pytest.raises(DataError, match=r"float32 of shape \(3, 4, 4\)"):
        resize_image(image.float(), (2, 2))
