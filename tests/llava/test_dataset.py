"""Conversations as a PIIP-LLaVA is trained on them."""

import json
import pickle
import re
import warnings

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("transformers")

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from piip.data.conversations import Conversation, ConversationFile, Turn
from piip.data.images import open_picture
from piip.data.length_sampler import LengthGroupedBatchSampler
from piip.errors import ConfigError, DataError
from piip.llava import CHAT_TEMPLATE, PiipLlavaProcessor
from piip.llava.answers import PLAIN_TEMPLATE, AnswerFinder
from piip.llava.dataset import IGNORED, ConversationCollator, ConversationDataset, Fate
from piip.llava.likelihood import AnswerCount, answer_scores, count_answers
from piip.train.data import ResumableLoader
from tests.data.builders import write_images
from tests.data.test_conversations import sample, write
from tests.llava.tiny import config, model, processor, tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim "
    "+ eos_token + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'Q: ' + message['content'] + ' A: ' }}"
    "{% else %}{% generation %}{{ message['content'] }}{% endgeneration %}{{ eos_token }}{% endif %}{% endfor %}"
)
IN_PARTS = (
    "{% for message in messages %}{{ message['role'] + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
PARTS_ONLY = IN_PARTS.replace("{% for part", "{{ message['content'][0]['type'][:0] + '' }}{% for part")
THINKING = CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>' }}{% endif")

SAMPLES = [
    sample("What is it?\n<image>", "A cat.", "And here?", "A dog. A dog.", image="a.png"),
    sample("Is <image> as <image>?", "Yes.", image=["a.png", "b.png"]),
    sample("How are you?", "Well."),
    sample("<image>\nWho?", "Nobody, really nobody at all.", image="b.png"),
]


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, {"a.png": (20, 30), "b.png": (30, 20)})
    return tmp_path


def dataset(folder, samples=SAMPLES, **options):
    return ConversationDataset(ConversationFile(write(folder / "talk.json", samples)), processor(), **options)


def learnt(item):
    """Return the learnt parts of an item as texts."""
    labels = item["labels"].tolist()
    runs = "".join("x" if label != IGNORED else " " for label in labels)
    return [tokenizer().decode(labels[run.start() : run.end()]) for run in re.finditer("x+", runs)]


def text(item):
    return tokenizer().decode(item["input_ids"])


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (CHAT_TEMPLATE, [" A cat.</s>", " A dog. A dog.</s>"]),
        (CHATML, ["A cat.</s>", "A dog. A dog.</s>"]),
        (THINKING, ["A cat.</s>", "A dog. A dog.</s>"]),
        (MARKED, ["A cat.</s>", "A dog. A dog.</s>"]),
        (IN_PARTS, ["A cat.</s>", "A dog. A dog.</s>"]),
        (PARTS_ONLY, ["A cat.</s>", "A dog. A dog.</s>"]),
        (PLAIN_TEMPLATE, ["A cat.\nA dog. A dog.\n"]),
    ],
)
def test_only_answers_are_learnt(folder, template, answers):
    item = dataset(folder, chat_template=template)[0]
    assert learnt(item) == answers
    assert (item["input_ids"] == 4).sum() == 16
    assert item["pixel_values"].shape == (1, 3, 64, 64)


def subwords(kind):
    """Return a tokenizer of subwords whose pieces begin with the space before them, as those of real models do."""
    byte_level = kind == "bytes"
    learner = Tokenizer(models.BPE(unk_token=None if byte_level else "<unk>"))
    marks = pre_tokenizers.ByteLevel(add_prefix_space=False) if byte_level else pre_tokenizers.Metaspace()
    learner.pre_tokenizer = marks
    learner.decoder = decoders.ByteLevel() if byte_level else decoders.Metaspace()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    texts = ["USER: What is it? ASSISTANT: A cat. And here? Überall, a dög. assistant:\n\n\nuser:\n"] * 9
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    learner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=learner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHATML, MARKED, IN_PARTS])
def test_answers_in_subwords(folder, kind, template):
    prepare = PiipLlavaProcessor.of(config(), subwords(kind), template)
    words = [sample("What is it? <image>", "A cat.", "And?", "Überall, a dög.", image="a.png")]
    item = ConversationDataset(ConversationFile(write(folder / "talk.json", words)), prepare)[0]
    assert (item["labels"] == IGNORED).sum() > 20
    told = prepare.tokenizer.decode(item["labels"][item["labels"] != IGNORED])
    assert told.replace("</s> ", "</s>").strip() == "A cat.</s>Überall, a dög.</s>"
    assert item["input_ids"].tolist().count(prepare.image_token_id) == 16


def test_tokens_are_those_of_the_processor(folder):
    data, prepare = dataset(folder), processor()
    for index in (1, 2, 3):
        told = data.conversations[index]
        prompt = prepare.apply_chat_template(
            [{"role": turn.role, "content": turn.text} for turn in told.turns]
        )
        pictures = [open_picture(folder / name) for name in told.images] or None
        expected = prepare(images=pictures, text=prompt, return_tensors="pt")
        expected["input_ids"] = expected["input_ids"][0]
        assert set(data[index]) - {"labels"} == set(expected) - {"attention_mask"}
        assert all(torch.equal(data[index][name], expected[name]) for name in set(data[index]) - {"labels"})


def test_images_stand_where_questions_want_them(folder):
    image = "<image>" * 16
    assert "USER: " + image + "\nWhat is it? ASSISTANT: A cat." in text(dataset(folder)[0])
    assert f"USER: Is {image} as {image}? ASSISTANT:" in text(dataset(folder)[1])
    parts = text(dataset(folder, chat_template=IN_PARTS)[1])
    assert f"user: Is {image}\n as {image}\n?</s>" in parts


def test_templates_with_their_own_beginning_get_no_second_one(folder):
    item = dataset(folder, chat_template="{{ bos_token }}" + CHATML)[2]
    assert item["input_ids"][:2].tolist()[0] == 1
    assert (item["input_ids"] == 1).sum() == 1


def conversation(*texts):
    return Conversation("", (), tuple(Turn(("user", "assistant")[k % 2], t) for k, t in enumerate(texts)))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] }}", "leaves answers out"),
        ("{% for m in messages %}{{ loop.revindex ~ m['content'] }}{% endfor %}", "differently once others"),
        ("{{ nonsense(", "cannot be rendered"),
        ("{{ raise_exception('never') }}", "cannot be rendered: never"),
    ],
)
def test_unfit_templates(template, message):
    with pytest.raises(ConfigError, match=message):
        AnswerFinder(template, tokenizer()).render(conversation("a", "b", "c", "d"))


def test_templates_that_lose_images(folder):
    data = dataset(folder, chat_template=CHATML.replace("| trim", "| replace('<image>', '')"))
    with pytest.raises(ConfigError, match="shows 0 images of a sample that has 1"):
        data[0]


def test_long_samples_are_cut_and_counted(folder):
    whole = dataset(folder)[0]
    length = len(whole["input_ids"])
    data = dataset(folder, max_length=length - 4)
    item = data[0]
    assert all(torch.equal(item[name], whole[name][: length - 4]) for name in ("input_ids", "labels"))
    assert torch.equal(item["pixel_values"], whole["pixel_values"])
    data[2]
    assert data.fates.tolist()[0] == Fate.CUT
    with pytest.warns(UserWarning, match=f"of 2 samples seen, 1 cut to {length - 4} tokens"):
        data.warn_of_losses()


def test_images_are_never_cut(folder):
    start = dataset(folder)[3]["input_ids"].tolist().index(4)
    short = sample("a", "Well.")
    for limit in (start + 13, start + 15, start + 16):  # within the image, and behind it without an answer
        data = dataset(folder, [SAMPLES[3], short], max_length=limit)
        replaced = data[0]
        assert "pixel_values" not in replaced
        assert text(replaced) == text(data[1])[: len(text(replaced))]
        assert data.fates[0] == Fate.TOO_LONG
    assert "replaced, as a cut would leave no answer" in data.losses()


def test_images_behind_the_cut_are_left_out(folder):
    two = sample("<image>a", "b", "<image>c", "d", image=["a.png", "b.png"])
    whole = dataset(folder, [two])[0]
    second = whole["input_ids"].tolist().index(4, whole["input_ids"].tolist().index(4) + 16)
    item = dataset(folder, [two], max_length=second)[0]
    assert torch.equal(item["pixel_values"], whole["pixel_values"][:1])
    with pytest.raises(
        DataError, match=r"No sample of .* from 0 on can be used \(of 1 samples seen, 1 replaced"
    ):
        dataset(folder, [two], max_length=second + 3)[0]


def test_damaged_images_are_reported_once_and_replaced(folder):
    (folder / "b.png").write_bytes(b"no image")
    data = dataset(folder)
    with pytest.warns(
        UserWarning, match=r"b\.png cannot be read .* Sample 1 is replaced by the next good one"
    ):
        item = data[(5, 1)]
    assert text(item) == text(data[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(data[1]["input_ids"], item["input_ids"])
    (folder / "a.png").unlink()
    with pytest.warns(UserWarning, match=r"[ab]\.png .* Sample [03] is replaced") as told:
        assert text(data[3]) == text(data[2]), "after the last comes the first"
    assert len(told) == 2
    assert data.losses() == "of 4 samples seen, 3 replaced, as an image cannot be read"


def test_for_scores_nothing_is_replaced(folder):
    (folder / "b.png").write_bytes(b"no image")
    data = dataset(folder, replace=False)
    with pytest.warns(UserWarning, match=r"b\.png cannot be read .* Sample 1 is left out\."):
        assert data[1] == {}
    collate = ConversationCollator(0)
    batch = collate([data[0], data[1], data[2]])
    assert same_batch(batch, collate([data[0], data[2]]))
    assert collate([data[1]]) == {}
    assert count_answers(model(), {}) == (0, 0, 0)
    assert data.unusable == 1
    assert data.losses() == "of 3 samples seen, 1 left out, as an image cannot be read"
    with pytest.raises(DataError, match="No conversation can be used"):
        answer_scores([AnswerCount(0.0, 0, 0)])


def same_batch(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_what_loader_processes_find_is_counted(folder):
    (folder / "b.png").write_bytes(b"no image")
    data = dataset(folder)
    sampler = LengthGroupedBatchSampler(data.lengths, data.groups, 2)
    batches = list(ResumableLoader(data, sampler, 2, ConversationCollator(0)))
    assert len(batches) == len(sampler) == 3
    assert data.fates.tolist() == [Fate.WHOLE, Fate.UNREADABLE, Fate.WHOLE, Fate.UNREADABLE]
    assert len(pickle.loads(pickle.dumps(data.conversations))) == 4


def test_estimated_lengths_order_samples(folder):
    data = dataset(folder)
    assert data.lengths.argmax() == 1, "two images"
    assert data.groups.tolist() == [1, 1, 0, 1]
    assert dataset(folder, max_length=20).lengths.max() == 20


def test_batches_are_padded_on_the_right(folder):
    data = dataset(folder)
    items = [data[index] for index in range(4)]
    batch = ConversationCollator(0)(items)
    assert batch["pixel_values"].shape[0] == 4
    for row, item in enumerate(items):
        length = len(item["input_ids"])
        assert torch.equal(batch["input_ids"][row, :length], item["input_ids"])
        assert torch.equal(batch["labels"][row, :length], item["labels"])
        assert batch["attention_mask"][row].sum() == length
        assert (batch["labels"][row, length:] == IGNORED).all()
    assert "pixel_values" not in ConversationCollator(None)([data[2], data[2]])


def loss_by_hand(llava, item):
    """Return the mean of -log p of every learnt token, given those before it."""
    inputs = {name: value for name, value in item.items() if name != "labels"}
    inputs["input_ids"] = inputs["input_ids"][None]
    with torch.no_grad():
        log_p = llava(**inputs).logits[0].log_softmax(-1)
    places = [k for k, label in enumerate(item["labels"].tolist()) if label != IGNORED]
    return torch.stack([-log_p[k - 1, item["input_ids"][k]] for k in places])


def test_the_loss_is_that_of_the_answers(folder):
    llava, data = model(), dataset(folder)
    items = [data[index] for index in range(4)]
    terms = [loss_by_hand(llava, item) for item in items]
    assert [len(part) for part in terms] == [len("A cat.") + len("A dog. A dog.") + 4, 6, 7, 31]
    with torch.no_grad():
        together = llava(**ConversationCollator(0)(items)).loss
    torch.testing.assert_close(together, torch.cat(terms).mean(), atol=1e-5, rtol=1e-5)


def test_batches_without_an_image_train_everything_by_zero(folder):
    llava, data = model(), dataset(folder)
    batch = ConversationCollator(0)([data[2]])
    plain = llava(**batch).loss
    llava.train()
    loss = llava(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss, plain)
    gradients = {name: p.grad for name, p in llava.named_parameters()}
    assert all(grad is not None for grad in gradients.values())
    seeing = [name for name in gradients if "vision_tower" in name or "projector" in name]
    assert len(seeing) > 20
    assert all(not gradients[name].any() for name in seeing)
    assert gradients["lm_head.weight"].any()


def test_a_slow_tokenizer_is_refused(folder):
    slow = processor()
    slow.tokenizer = object()
    file = ConversationFile(write(folder / "talk.json", SAMPLES))
    with pytest.raises(ConfigError, match="need a fast tokenizer"):
        ConversationDataset(file, slow, chat_template=CHATML)


def test_real_conversations_are_learnt(shared):
    """Ten steps on genuine COCO images: the answers become likelier."""
    file = ConversationFile(shared / "data/coco_tiny/vqa/llava_train.json")
    data = ConversationDataset(file, processor(), max_length=400)
    items = [data[index] for index in range(4)]
    told = json.loads(file.path.read_text())[1]["conversations"][1]["value"]
    assert "".join(learnt(items[1])).startswith(f" {told}</s>")
    torch.manual_seed(0)
    llava = model().train()
    optimizer = torch.optim.AdamW(llava.parameters(), 3e-3)
    losses = []
    for batch in list(DataLoader(items, 2, collate_fn=ConversationCollator(0))) * 5:
        losses.append(llava(**batch).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
