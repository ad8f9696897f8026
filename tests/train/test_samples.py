import numpy as np

from piip.data.coco import DetectionDataset
from piip.data.layout import find_dataset
from piip.data.settings import ImageConfig
from piip.tasks.detection.masks import decode_masks
from piip.train.samples import ground_truth
from tests.data.builders import coco_raw, write_coco


def test_polygons_become_masks_of_the_ground_truth(tmp_path):
    """COCO's own json outlines objects with polygons, which a drawing needs as masks."""
    raw = coco_raw()
    raw["annotations"] = raw["annotations"][:2]  # two objects that lie inside their images
    source = find_dataset(write_coco(tmp_path, raw)).split("val")
    dataset = DetectionDataset(source, ImageConfig(), masks=False)
    drawn = [truth for truth in (ground_truth(dataset, k) for k in range(len(dataset))) if len(truth)]
    assert len(drawn) == 2
    for truth in drawn:
        (mask,) = decode_masks(truth.masks, truth.original_size)
        rows, columns = np.nonzero(mask)
        bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(bounds - truth.boxes[0].numpy()).max() <= 1
