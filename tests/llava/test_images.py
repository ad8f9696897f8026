"""Images in their own aspect ratio: prepared, seen, answered about, learnt from."""

import json

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

pytest.importorskip("transformers")

import transformers

from piip.config import MergingConfig, PIIPConfig
from piip.data.conversations import ConversationFile
from piip.errors import ConfigError
from piip.llava import (
    Answerer,
    PiipLlavaConfig,
    PiipLlavaForConditionalGeneration,
    PiipLlavaProcessor,
    Turn,
    WholeImageProcessor,
    image_processor,
)
from piip.llava.dataset import ConversationCollator, ConversationDataset
from piip.llava.explaining import explain
from tests.helpers import TINY_INTERACTION, tiny_branch
from tests.llava.test_model import ask, picture
from tests.llava.tiny import config as released
from tests.llava.tiny import text_config, tokenizer

SIDE = 128
SHAPES = ((55, 80), (90, 30), (60, 60), (44, 64))
"""Height and width of pictures; the first and the last have the same aspect ratio."""


def network(small=64, large=SIDE):
    branches = (tiny_branch(64, small), tiny_branch(32, large))
    return PIIPConfig(branches, TINY_INTERACTION, MergingConfig("none", pyramid_levels=()))


def config(tower=None, **options):
    options = {"keep_aspect_ratio": True} | options
    return PiipLlavaConfig.of(tower or network(), text_config(), 4, **options)


@pytest.fixture(scope="module")
def processor():
    return PiipLlavaProcessor.of(config(), tokenizer())


@pytest.fixture(scope="module")
def llava():
    torch.manual_seed(0)
    return PiipLlavaForConditionalGeneration(config()).eval()


@pytest.fixture(scope="module")
def pictures():
    return [picture(number, shape) for number, shape in enumerate(SHAPES)]


def prepare(processor, pictures, prompts=None):
    texts = prompts or [ask("a?")] * len(pictures)
    return processor(images=pictures, text=texts, return_tensors="pt", padding=True)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 200), (64, 128)),
        ((90, 120), (96, 128)),
        ((300, 300), (128, 128)),
        ((10, 8), (128, 96)),
        ((1000, 10), (128, 32)),
    ],
)
def test_sizes_keep_the_aspect_ratio(processor, size, expected):
    assert processor.image_processor.size_of(*size) == expected
    pixels = prepare(processor, [picture(0, size)])["pixel_values"]
    assert pixels.shape == (1, 3, *expected), "one image is not filled up"


def test_a_branch_is_never_too_small():
    """The smaller branch has 4 x 4 tokens at 64 x 64, and one where the larger has 4 x 4."""
    settings = config(network(32))
    assert (settings.size_multiple(), settings.smallest_side()) == (64, 64)
    assert (released().size_multiple(), released().smallest_side()) == (32, 32)


def test_the_whole_image_is_seen_in_its_colours(processor):
    halves = Image.new("RGB", (80, 40), (255, 0, 0))
    halves.paste((0, 0, 255), (40, 0, 80, 40))
    pixels = prepare(processor, [halves])["pixel_values"][0]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for corner, colour in ((pixels[:, 0, 0], [1.0, 0, 0]), (pixels[:, -1, -1], [0, 0, 1.0])):
        torch.testing.assert_close(corner, (torch.tensor(colour) - mean) / std, atol=1e-3, rtol=0)


def test_an_image_has_the_tokens_of_its_grid(processor, llava, pictures):
    inputs = prepare(processor, pictures)
    assert inputs["image_sizes"].tolist() == [[96, 128], [128, 32], [128, 128], [96, 128]]
    counts = (inputs["input_ids"] == 4).sum(1).tolist()
    assert counts == [48, 16, 64, 48]
    with torch.no_grad():
        output = llava.get_image_features(inputs["pixel_values"], image_sizes=inputs["image_sizes"])
    assert [len(part) for part in output.pooler_output] == counts
    for number, image in enumerate(pictures):
        alone = prepare(processor, [image])["pixel_values"]
        with torch.no_grad():
            [features] = llava.get_image_features(alone).pooler_output
        torch.testing.assert_close(output.pooler_output[number], features, atol=1e-5, rtol=1e-4)


def test_what_is_filled_up_is_not_seen(processor, llava, pictures):
    inputs = prepare(processor, pictures)
    noisy = torch.randn_like(inputs["pixel_values"])
    for number, (height, width) in enumerate(inputs["image_sizes"].tolist()):
        noisy[number, :, :height, :width] = inputs["pixel_values"][number, :, :height, :width]
    assert not torch.equal(noisy, inputs["pixel_values"])
    with torch.no_grad():
        assert torch.equal(llava(**inputs).logits, llava(**inputs | {"pixel_values": noisy}).logits)


def test_a_batch_answers_as_each_alone(processor, llava, pictures):
    answerer = Answerer(llava, processor)
    asked = [[Turn("user", "what is it?", (image,))] for image in pictures]
    asked.append([Turn("user", "what differs?", tuple(pictures[:2]))])
    together = answerer.answer_all(asked, 8)
    assert together == [answerer.answer_all([turns], 8)[0] for turns in asked]
    assert len(set(together)) > 1, "answers that are all alike would prove nothing"


def test_the_cache_changes_nothing(processor, llava, pictures):
    inputs = prepare(processor, pictures[:2])
    outputs = [
        llava.generate(**inputs, max_new_tokens=5, do_sample=False, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*outputs)


def test_it_is_saved_and_found(processor, llava, pictures, tmp_path):
    processor.save_pretrained(tmp_path)
    llava.save_pretrained(tmp_path)
    again = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(again.image_processor) is WholeImageProcessor
    before, after = prepare(processor, pictures), prepare(again, pictures)
    assert all(torch.equal(before[name], after[name]) for name in before)
    pipe = transformers.pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
    content = [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "a?"}]
    (result,) = pipe(
        text=[{"role": "user", "content": content}],
        generate_kwargs={"max_new_tokens": 8, "do_sample": False},
        return_full_text=False,
    )
    answer = Answerer(llava, processor).answer(pictures[0], "a?", 8)
    assert result["generated_text"].strip() == answer


def conversations(folder, shown):
    """Write conversations, the n-th with the pictures that ``shown[n]`` numbers, and return their file."""
    for number, shape in enumerate(SHAPES):
        picture(number, shape).save(folder / f"{number}.png")
    samples = [
        {
            "image": [f"{image}.png" for image in images],
            "conversations": [
                {"from": "human", "value": "<image>" * len(images) + "a?"},
                {"from": "gpt", "value": "b" * 4},
            ],
        }
        for images in shown
    ]
    (folder / "data.json").write_text(json.dumps(samples))
    return ConversationFile(folder / "data.json", folder)


def test_it_learns_from_batches_as_from_samples(processor, llava, tmp_path):
    """Answers have equal lengths, so the mean loss of samples is that of their batch."""
    data = ConversationDataset(conversations(tmp_path, [[0], [1], [2, 3]]), processor)
    items, collate = [data[index] for index in range(3)], ConversationCollator(0)
    assert [item["image_sizes"].tolist() for item in items] == [
        [[96, 128]],
        [[128, 32]],
        [[128, 128], [96, 128]],
    ]
    batch = collate(items)
    assert batch["pixel_values"].shape == (4, 3, 128, 128)
    with torch.no_grad():
        alone = [llava(**collate([item])).loss for item in items]
    loss = llava(**batch).loss
    torch.testing.assert_close(loss, torch.stack(alone).mean(), atol=1e-5, rtol=1e-4)
    loss.backward()
    assert all(p.grad is not None for p in llava.parameters())
    llava.zero_grad()


@pytest.mark.parametrize("shown", [[0, 1], []])
def test_processes_look_equally_often(processor, pictures, shown, monkeypatch):
    """FSDP gathers weights at every look: another process looks three times at images of three sizes."""

    def reduce(looks, operation):
        assert operation == torch.distributed.ReduceOp.MAX
        looks.fill_(3)

    torch.manual_seed(0)
    llava = PiipLlavaForConditionalGeneration(config()).train()
    inputs = dict(
        processor(
            images=[pictures[number] for number in shown] or None,
            text=[ask("a?", images=len(shown))],
            return_tensors="pt",
        )
    )
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == 4, -100)
    expected = llava(**inputs).loss
    looks = []
    llava.model.vision_tower.network.register_forward_hook(lambda *_: looks.append(1))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", reduce)
    loss = llava(**inputs).loss
    assert len(looks) == 3
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in llava.parameters())


def test_cut_samples_lose_images_with_their_sizes(processor, tmp_path):
    conversations(tmp_path, [[0, 1]])
    sample = json.loads((tmp_path / "data.json").read_text())
    first = [{"from": "human", "value": "<image>a?"}, {"from": "gpt", "value": "b" * 200}]
    second = [{"from": "human", "value": "<image>c?"}, {"from": "gpt", "value": "dd"}]
    sample[0]["conversations"] = first + second
    (tmp_path / "data.json").write_text(json.dumps(sample))
    file = ConversationFile(tmp_path / "data.json", tmp_path)
    item = ConversationDataset(file, processor, max_length=300)[0]
    assert item["image_sizes"].tolist() == [[96, 128]]
    assert len(item["pixel_values"]) == 1


def test_answers_are_explained_on_the_image_s_own_grid(processor, llava, pictures):
    found = explain(llava, processor, pictures[1], ask("a?"), "a cat")
    assert found.attention.shape == (8, 2)
    assert found.image.shape == (128, 32, 3)
    assert sum(found.shares) == pytest.approx(1)


@pytest.mark.parametrize(("keep", "grid"), [(True, None), (False, None), (True, (2, 3))])
def test_inference_servers_are_told_the_tokens(pictures, keep, grid):
    processor = PiipLlavaProcessor.of(config(out_grid=grid, keep_aspect_ratio=keep), tokenizer())
    told = processor._get_num_multimodal_tokens(image_sizes=SHAPES)
    counts = (prepare(processor, pictures)["input_ids"] == 4).sum(1).tolist()
    assert told["num_image_tokens"] == counts
    assert "num_image_tokens" not in processor._get_num_multimodal_tokens()


def test_networks_of_squares_only_are_refused():
    with pytest.raises(ConfigError, match="leave keep_aspect_ratio out"):
        PiipLlavaProcessor.of(config(network(32, 72)), tokenizer())


def test_sizes_can_be_set_for_one_call(processor):
    inputs = processor(
        images=[picture(0, (50, 100))], text=[ask("a?")], return_tensors="pt", images_kwargs={"side": 64}
    )
    assert inputs["image_sizes"].tolist() == [[32, 64]]


LONG = ((3, 2100), (2000, 40), (5, 1000), (900, 1))


@pytest.mark.parametrize("size", LONG)
def test_long_images_are_prepared_as_in_a_square(size):
    """What LLaVA's own class makes of the whole square, which takes gigabytes for longer images."""
    ours, image = image_processor(SIDE), picture(0, size)
    theirs = transformers.LlavaImageProcessor(**ours.to_dict())
    found, expected = (kind(images=[image], return_tensors="pt")["pixel_values"] for kind in (ours, theirs))
    assert found.shape == (1, 3, SIDE, SIDE)
    assert (found - expected).abs().max() < 0.02, "more than a grey level of 255"


def test_other_images_are_prepared_by_llava_s_class():
    ours = image_processor(SIDE)
    theirs = transformers.LlavaImageProcessor(**ours.to_dict())
    for size in ((50, 80), (600, 150), (300, 1200), (100, 512)):
        image = picture(0, size)
        pixels = [kind(images=[image], return_tensors="pt")["pixel_values"] for kind in (ours, theirs)]
        assert torch.equal(*pixels)


def test_long_images_are_never_held_as_a_square(monkeypatch):
    """One of 20,000 x 30 pixels took 3.5 GB."""
    sizes, pad = [], tv.pad

    def measured(*arguments, **options):
        padded = pad(*arguments, **options)
        sizes.append(padded.numel())
        return padded

    monkeypatch.setattr(tv, "pad", measured)
    images = [Image.new("RGB", size) for size in ((20000, 30), (30, 20000))]
    image_processor(SIDE)(images=images, return_tensors="pt")
    assert max(sizes) == 3 * 20000 * SIDE
