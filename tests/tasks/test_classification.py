import pytest
import torch

from piip.config import MergingConfig
from piip.data.classification import prepare_picture
from piip.data.settings import AugmentedTest, ImageConfig
from piip.data.views import Views
from piip.errors import ConfigError
from piip.network import PIIP
from piip.tasks.classification import ClassifierConfig, ImageClassifier, classify_views
from tests.helpers import fill, tiny_branch, tiny_config

MAPS = MergingConfig("none", pyramid_levels=())
MERGED = MergingConfig("conv", pyramid_levels=())


def classifier(merging=MAPS, branches=None, **head):
    config = tiny_config(merging=merging)
    if branches:
        config = config.replace(branches=branches)
    return fill(ImageClassifier(ClassifierConfig(3, **head), PIIP(config))).eval()


def with_class_tokens():
    return tuple(tiny_branch(dim, size, prefix_tokens=True) for dim, size in ((64, 64), (32, 128)))


@pytest.mark.parametrize(
    "model",
    [
        classifier(),
        classifier(token="mean"),
        classifier(token="class", branches=with_class_tokens()),
        classifier(MERGED, head="merged"),
    ],
    ids=["first_patch", "mean", "class", "merged"],
)
def test_images_of_any_size_get_finite_logits(model):
    with torch.no_grad():
        assert model(torch.randn(2, 3, 100, 140)).shape == (2, 3)


@pytest.mark.parametrize("model", [classifier(token="mean"), classifier(MERGED, head="merged")])
def test_means_leave_the_padding_out(model, monkeypatch):
    """A mean over the true image differs from one over the padded one, which forward hooks see."""
    seen = []
    for norm in model.norms:
        norm.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    with torch.no_grad():
        model(torch.randn(1, 3, 100, 140))  # padded to 128 x 192
    # 16-pixel tokens at half, three quarters and full size: of 8 x 12 tokens the true image touches 7 x 9.
    assert seen == ([7 * 9] if model.config.head == "merged" else [4 * 5, 5 * 7, 7 * 9])


def test_branch_heads_are_averaged():
    model = classifier()
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        features = model.network.forward_features(image)[-1]
        parts = zip(model.heads, model.norms, features, strict=True)
        logits = [head(norm(tokens.x[:, 0])) for head, norm, tokens in parts]
        assert torch.allclose(model(image), sum(logits) / 3, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ClassifierConfig(0), "num_classes is 0; give a number from 1"),
        (lambda: ClassifierConfig("3"), "num_classes is '3'; give a whole number"),
        (lambda: ClassifierConfig(3, head="both"), "one of 'merged', 'branch_heads'"),
        (lambda: classifier(MERGED), "'branch_heads' needs merging kind 'none'"),
        (lambda: classifier(head="merged"), "'merged' needs merging kind 'linear' or 'conv'"),
        (lambda: classifier(token="class"), "needs prefix_tokens in every branch"),
    ],
)
def test_impossible_heads_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


@torch.no_grad()
def test_probabilities_of_all_views_are_averaged():
    model, config = classifier(), ImageConfig(scale=(64, 64))
    pixels = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    views = Views(pixels, config, AugmentedTest((1.0, 1.5), flip=True), prepare=prepare_picture)
    assert [tuple(view.image.shape) for view in views] == [(3, 64, 64)] * 2 + [(3, 96, 96)] * 2
    expected = sum(model(view.image[None])[0].softmax(0) for view in views) / 4
    torch.testing.assert_close(classify_views(model, views).softmax(0), expected)
    mirrored = Views(pixels.flip(-1), config, views.test, prepare=prepare_picture)
    torch.testing.assert_close(classify_views(model, mirrored).softmax(0), expected)
    once = Views(pixels, config, AugmentedTest(), prepare=prepare_picture)
    assert torch.equal(classify_views(model, once), model(prepare_picture(pixels, config)[None])[0])


@pytest.mark.parametrize("token", ["class", "first_patch", "mean"])
def test_heads_stay_in_float32_under_autocast(token):
    model, seen = classifier(token=token, branches=with_class_tokens()), []
    for head in model.heads:
        head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(1, 3, 128, 128)).dtype == torch.float32
    assert set(seen) == {torch.float32}
