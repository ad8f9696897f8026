"""``piip predict``."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from piip.cli.console import console
from piip.cli.llava import answer_about, refuse
from piip.errors import DataError


def predict_images(
    images: list[Path],
    *,
    model: str,
    out: Path = Path("predictions"),
    score: float = 0.5,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    prompt: str | None = None,
    max_new_tokens: int = 256,
    explain: bool = False,
    device: str = "auto",
) -> Path:
    """Show what a trained model sees in images.

    Writes every image with what is seen drawn on it, and predictions.json: objects in COCO's format; how much of
    the image each class covers, with a mask of class numbers (NAME_mask.png) for every image; or the five
    likeliest classes of the image. A PIIP-LLaVA answers --prompt for every image; the answers are printed and
    written to predictions.json, and --explain true draws where in the image each came from.

    Args:
        images: Image files or folders of images.
        model: A run, the folder of a saved model, or owner/name on the Hugging Face Hub.
        out: Folder for the drawn images and predictions.json.
        score: Leave out objects with a lower score; of a detector.
        scales: Look at each image at these factors of its scale, such as 0.75,1,1.25, and merge what is seen.
        flip: Also look at each image mirrored left to right.
        prompt: What a PIIP-LLaVA is asked about each image.
        max_new_tokens: Where an answer of a PIIP-LLaVA is cut off.
        explain: Draw the attention from an answer of a PIIP-LLaVA to the image, and what every branch contributed.
        device: Where the model runs: auto, cpu, cuda, cuda:1, mps.
    """
    from piip import AugmentedTest, load
    from piip.files import write_json
    from piip.hub import find_folder, is_llava
    from piip.tasks.segmentation import Segmentation

    test = AugmentedTest(scales, flip)
    files = _files(images)
    if is_llava(find_folder(model)):
        refuse(model, "a PIIP-LLaVA", {"scales": scales != (1.0,), "flip": flip})
        drawn = _targets(files, out) if explain else []
        with _all_or_nothing(drawn):
            return answer_about(files, drawn, model, prompt, max_new_tokens, device, out)
    refuse(model, "no PIIP-LLaVA", {"prompt": prompt, "explain": explain})
    targets = _targets(files, out)
    predictor = load(model, device, test=test)
    seen = []
    with _all_or_nothing(targets):
        for found in predictor.predict_all(files, score):
            path, target = files[found.image_id], targets[found.image_id]
            found.plot(target)
            if isinstance(found, Segmentation):
                targets.append(target.with_name(f"{target.stem}_mask.png"))
                found.save_mask(targets[-1])
            seen.append(found.record())
            console().print(f"{path}: {found.summary() or 'nothing'} -> {target}", markup=False)
    images_seen = [
        {"id": number, "file_name": str(path), "height": record.pop("height"), "width": record.pop("width")}
        for number, (path, record) in enumerate(zip(files, seen, strict=True))
    ]
    write_json(out / "predictions.json", predictor.gather(images_seen, seen), indent=None)
    return out


def _files(images: list[Path]) -> list[Path]:
    from piip.data.images import SUFFIXES

    files: list[Path] = []
    for path in images:
        if not path.exists():
            raise DataError(f"There is no image {path}; check the path.")
        inside = (
            sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        )
        if not inside:
            raise DataError(f"The folder {path} holds no images.")
        files += inside
    return files


def _targets(files: list[Path], out: Path) -> list[Path]:
    """Return where the drawing of every image goes; images of the same name get a number."""
    count = Counter(path.stem for path in files)
    names = [p.stem if count[p.stem] == 1 else f"{p.stem}-{number}" for number, p in enumerate(files)]
    targets = [out / f"{name}.png" for name in names]
    sources = {path.resolve() for path in files}
    for target in targets:
        if target.resolve() in sources:
            raise DataError(
                f"The drawing {target} would overwrite an image; choose another folder with --out."
            )
    return targets


@contextmanager
def _all_or_nothing(targets: list[Path]) -> Iterator[None]:
    """Remove what was drawn if the rest cannot be."""
    try:
        yield
    except BaseException:
        for target in targets:
            target.unlink(missing_ok=True)
        raise
