import pathlib
import subprocess
import sys

import piip


def test_importing_the_package_is_light():
    heavy = [
        "torchvision",
        "timm",
        "transformers",
        "lightning",
        "matplotlib",
        "pycocotools",
        "sklearn",
        "skimage",
    ]
    code = f"import sys, piip; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_can_be_imported():
    for name in piip.__all__:
        assert getattr(piip, name) is not None
    assert set(piip.__all__) <= set(dir(piip))


def test_nothing_is_ever_unpickled():
    sources = pathlib.Path(piip.__file__).parent.rglob("*.py")
    unsafe = ("pickle.load", "weights_only=False", "allow_pickle=True")
    assert not [path for path in sources if any(word in path.read_text() for word in unsafe)]


def test_submodules_need_no_import_of_their_own():
    code = "import piip; print(piip.convert.from_official.__name__, piip.hub.from_pretrained.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["from_official", "from_pretrained"]
