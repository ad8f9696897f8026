"""What a model is asked is what it was trained on: one form of messages for both."""

import pytest
import torch

pytest.importorskip("transformers")

from tokenizers.processors import TemplateProcessing

from piip.data.conversations import ConversationFile
from piip.errors import ConfigError
from piip.llava import CHAT_TEMPLATE, Answerer, PiipLlavaProcessor, Turn
from piip.llava.dataset import IGNORED, ConversationDataset
from tests.data.builders import write_images
from tests.data.test_conversations import sample, write
from tests.llava.test_dataset import CHATML, IN_PARTS, MARKED, subwords
from tests.llava.test_model import picture
from tests.llava.tiny import config, model, processor, tokenizer

EITHER = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% endif %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
IMAGE = {"type": "image", "image": picture()}

# What training data say, what is asked for it to be the same, and that in parts; of how many images.
ARRANGEMENTS = {
    "first": ("<image>\nWhat is it?", "What is it?", [IMAGE, "What is it?"], 1),
    "last": ("What is it?\n<image>", "What is it?", ["What is it?\n", IMAGE], 1),
    "between": ("What is <image> here? ", "What is  here?", ["What is ", IMAGE, " here? "], 1),
    "alone": ("<image>", "", [IMAGE], 1),
    "both first": ("<image>\n<image>\nWhat?", "What?", [IMAGE, IMAGE, "What?"], 2),
    "both alone": ("<image>\n<image>", "", [IMAGE, IMAGE], 2),
    "both between": (
        "A: <image>\nB: <image>, same?",
        "A: <image>\nB: <image>, same?",
        ["A: ", IMAGE, "\nB: ", IMAGE, ", same?"],
        2,
    ),
    "none": ("How are you? ", "How are you? ", ["How are you? "], 0),
}


def beginning():
    """Return the tokenizer of characters, which now puts ``<s>`` before every text."""
    found = tokenizer()
    found.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return found


def prompts(folder, prepare):
    """Return the tokens that training has before the answer to each of the arrangements."""
    write_images(folder, {"0.png": (20, 30), "1.png": (30, 20)})
    told = [
        sample(value, "A cat.", image=[f"{number}.png" for number in range(images)])
        for value, _, _, images in ARRANGEMENTS.values()
    ]
    data = ConversationDataset(ConversationFile(write(folder / "talk.json", told)), prepare)
    items = [data[index] for index in range(len(data))]
    return [item["input_ids"][: (item["labels"] != IGNORED).nonzero()[0]].tolist() for item in items]


@pytest.fixture(scope="module")
def llava():
    return model()


@pytest.mark.parametrize(
    ("template", "make"),
    [
        (CHAT_TEMPLATE, tokenizer),
        (CHAT_TEMPLATE, beginning),
        (CHAT_TEMPLATE, lambda: subwords("bytes")),
        (CHATML, lambda: subwords("bytes")),  # the other templates end with a space, which subwords swallow
        ("{{ bos_token }}" + CHATML, beginning),
        (EITHER, tokenizer),
        (EITHER, beginning),
        (IN_PARTS, beginning),
        (MARKED, beginning),
    ],
    ids=[
        "vicuna",
        "vicuna-bos",
        "vicuna-bytes",
        "own-bytes",
        "own",
        "either",
        "either-bos",
        "parts",
        "marked",
    ],
)
def test_asking_begins_as_training_does(template, make, llava, tmp_path):
    prepare = PiipLlavaProcessor.of(config(), make(), template)
    answerer = Answerer(llava, prepare)
    for trained, arrangement in zip(prompts(tmp_path, prepare), ARRANGEMENTS.items(), strict=True):
        name, (_, text, parts, images) = arrangement
        asked = answerer._inputs([[Turn("user", text, (picture(),) * images)]], 1)["input_ids"][0].tolist()
        assert asked == trained, name
        assert trained.count(prepare.image_token_id) == 16 * images
        assert trained.count(1) <= 1, "one beginning is enough"
        if template == CHAT_TEMPLATE:
            assert in_parts(prepare, parts) == trained, name


def in_parts(prepare, parts):
    """Return the tokens by which transformers itself asks."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    told = prepare.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    return told["input_ids"][0]


@pytest.mark.parametrize("template", ["{{ bos_token }}" + CHATML, CHAT_TEMPLATE])
def test_losses_and_explanations_have_one_beginning(template, llava):
    answerer = Answerer(llava, PiipLlavaProcessor.of(config(), beginning(), template))
    seen = []
    embedding = answerer.model.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    answerer.losses([[Turn("user", "a?")]], ["yes"])
    answerer.explain(picture(), "a?", "yes")
    hook.remove()
    assert [int((ids == 1).sum()) for ids in seen] == [1, 1]


def test_processors_without_a_template_are_refused(llava):
    prepare = processor()
    prepare.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        Answerer(llava, prepare).answer((), "a?", 1)
    prepare.chat_template = {"default": CHAT_TEMPLATE}
    assert Answerer(llava, prepare).render([Turn("user", "a?")]).endswith("USER: a? ASSISTANT:")


def test_vicunas_answers_are_marked():
    """transformers' own mask of what is learnt has the tokens that piip learns."""
    talk = [
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    found = processor().apply_chat_template(
        talk, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    text = processor().apply_chat_template(talk)
    assert text.endswith(" USER: <image>\nWhat? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT: Yes.</s>")
    learnt = found["input_ids"][0][torch.as_tensor(found["assistant_masks"])[0].bool()]
    assert tokenizer().decode(learnt) == " A cat.</s> Yes.</s>"
