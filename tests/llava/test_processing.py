"""Files, pictures and texts become what the model reads, whoever hands them over."""

import base64
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

import transformers

from piip.data.images import ImageFileError
from piip.llava import SquareImageProcessor
from piip.llava.answering import as_pictures
from tests.llava.test_model import QUESTIONS, answer, picture
from tests.llava.tiny import model, processor, tokenizer

KINDS = ("rgb.png", "alpha.png", "deep.png", "deep_colour.png", "turned.jpg", "grey.png", "palette.png")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with files of all kinds."""
    folder = tmp_path_factory.mktemp("files")
    y, x = np.mgrid[:60, :80]
    colours = np.stack([x * 3, y * 4, x + y], -1).astype(np.uint8)
    alpha = np.where(x > 40, 255, 0).astype(np.uint8)
    turned = Image.fromarray(colours)
    exif = turned.getexif()
    exif[0x112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    Image.fromarray(colours).save(folder / "rgb.png")
    Image.fromarray(np.dstack([colours, alpha])).save(folder / "alpha.png")
    Image.fromarray(colours[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(colours[..., 0]).save(folder / "grey.png")
    Image.fromarray(colours).convert("P").save(folder / "palette.png")
    (folder / "deep_colour.png").write_bytes(deep_png(colours))
    return folder


def deep_png(colours):
    """Return a PNG with 16 bits for each colour, which PIL cannot write."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width = colours.shape[:2]
    rows = (colours.astype(">u2") * 257).astype(">u2").reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_files_and_pictures_are_what_piip_reads(files, kind, keep):
    path, ready = files / kind, processor(keep_aspect_ratio=keep)
    expected = ready.image_processor(images=list(as_pictures(path)), return_tensors="pt")["pixel_values"]
    written = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    for image in (str(path), Image.open(path), written):
        shown = {"type": "image", "image": image}
        message = {"role": "user", "content": [shown, {"type": "text", "text": "a?"}]}
        found = (
            ready(images=[image], text="<image>", return_tensors="pt"),
            ready.apply_chat_template([message], tokenize=True, return_dict=True, return_tensors="pt"),
            ready.image_processor(images=image, return_tensors="pt"),
        )
        for inputs in found:
            # What is written into the message is decoded by torch, another decoder of JPEG.
            rounding = 0.05 if image is written else 0
            torch.testing.assert_close(inputs["pixel_values"], expected, atol=rounding, rtol=0)


def test_arrays_and_tensors_are_taken_as_they_are(files):
    ready = processor()
    [shown] = as_pictures(files / "rgb.png")
    expected = ready(images=[shown], text="<image>", return_tensors="pt")["pixel_values"]
    pixels = torch.from_numpy(np.array(shown))
    for image in (pixels.numpy(), pixels.movedim(-1, 0)):
        assert torch.equal(
            ready(images=[image], text="<image>", return_tensors="pt")["pixel_values"], expected
        )


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"broken")
    with pytest.raises(ImageFileError, match=r"broken\.png cannot be read \(not an image\)"):
        processor()(images=[str(tmp_path / "broken.png")], text="<image>")
    with pytest.raises(ValueError, match="Incorrect image source"):
        processor()(images=["nowhere.png"], text="<image>")


def test_the_way_of_reading_is_saved(tmp_path):
    processor().save_pretrained(tmp_path)
    again = type(processor()).from_pretrained(tmp_path)
    assert type(again.image_processor) is SquareImageProcessor
    assert again.tokenizer.padding_side == "left"


def test_batches_of_transformers_answer_as_each_alone(tmp_path):
    """With a tokenizer that was made as in the documentation, without a word about padding."""
    assert tokenizer().padding_side == "right"
    ready, llava = processor(), model()
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    asked = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": picture(n)}, {"type": "text", "text": text}],
            }
        ]
        for n, text in enumerate(QUESTIONS)
    ]
    together = answer(llava, ready.apply_chat_template(asked, padding=True, **options))
    alone = [answer(llava, ready.apply_chat_template(turns, **options)) for turns in asked]
    assert torch.equal(together, torch.cat(alone))

    llava.save_pretrained(tmp_path)
    ready.save_pretrained(tmp_path)
    pipe = transformers.pipeline("image-text-to-text", model=str(tmp_path), device="cpu", batch_size=2)
    said = pipe(text=asked, generate_kwargs={"max_new_tokens": 6, "do_sample": False}, return_full_text=False)
    texts = [result["generated_text"] for [result] in said]
    assert texts == tokenizer().batch_decode(torch.cat(alone))
