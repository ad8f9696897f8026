import gc
import importlib
import pathlib
import subprocess
import sys
import types

import pytest

import piip


def test_importing_the_package_is_light():
    heavy = (
        "torch torchvision timm transformers lightning numba triton matplotlib pycocotools sklearn skimage "
        "jsonargparse rich torchmetrics tensorboard supervision scipy segmentation_models_pytorch"
    )
    code = f"import sys, piip; print([name for name in {heavy.split()} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_model_needs_no_library_of_training():
    heavy = [
        "transformers",
        "segmentation_models_pytorch",
        "lightning",
        "torchmetrics",
        "matplotlib",
        "pycocotools",
        "jsonargparse",
        "numba",
    ]
    code = (
        f"import sys; from piip import create_model, load; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_rests_during_imports_only(monkeypatch, enabled):
    seen = []

    def record(name):
        seen.append(gc.isenabled())
        return types.SimpleNamespace(build=name)

    monkeypatch.setattr(importlib, "import_module", record)
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        assert piip.__getattr__("build") == "piip.factory"
        assert seen == [False]
        assert gc.isenabled() == enabled
        with pytest.raises(AttributeError):
            piip.__getattr__("nothing")
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


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


def test_the_package_runs_as_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "piip", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.split()[-1] == piip.__version__
