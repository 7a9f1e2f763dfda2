"""What a dataset holds, found by opening every one of its files.

Shape shorthand: N images; S segments of all of them; H, W an image's height and width.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from scipy import ndimage
from tqdm import tqdm

from amwc_d2.data.images import jpeg_damage, read_pixels
from amwc_d2.data.panoptic_format import check_image_size, label_problems, read_panoptic_png

SEGMENT = np.dtype(
    [("image", "i4"), ("category", "i4"), ("area", "i8"), ("height", "i4"), ("width", "i4"),
     ("crowd", "?")]
)  # fmt: skip


@dataclass
class Survey:
    """What :func:`survey_dataset` found.

    Attributes:
        name: the dataset. classes: names of its K classes. is_thing: bool (K,).
        samples: images listed. wrong_samples: how many of them have a problem.
        problems: a text for each, naming the file and the fix.
        sizes: int (N, 2), height and width of the images that opened.
        segments: ``SEGMENT`` (S,): image and class by number, area, extent in pixels, crowd.
        void_pixels, pixels: counts.
        kinds: images by (type, channels) of their pixels.
        values: float (N, 4): least, 1st and 99.8th percentile and largest pixel value.
    """

    name: str
    classes: list
    is_thing: np.ndarray
    samples: int = 0
    wrong_samples: int = 0
    problems: list = field(default_factory=list)
    sizes: np.ndarray = None
    segments: np.ndarray = None
    void_pixels: int = 0
    pixels: int = 0
    kinds: Counter = field(default_factory=Counter)
    values: np.ndarray = None

    def areas(self, category):
        """Areas of a class's segments in pixels, crowds left out."""
        mine = self.segments["category"] == category
        return self.segments["area"][mine & ~self.segments["crowd"]]


def survey_dataset(name, read=read_pixels, progress=True):
    """Open every image and every label of a dataset, check them and measure the segments.

    Args:
        name (str): a registered panoptic dataset.
        read (callable): path -> (pixels (H, W, C), anything).
        progress (bool): show a progress bar.

    Returns:
        Survey: its ``problems`` list what is wrong; figures are those of the samples without.
    """
    metadata = MetadataCatalog.get(name)
    things = set(metadata.thing_dataset_id_to_contiguous_id.values())
    classes = list(metadata.stuff_classes)
    survey = Survey(name, classes, np.isin(np.arange(len(classes)), list(things)))
    samples = DatasetCatalog.get(name)
    survey.samples = len(samples)
    sizes, segments, values = [], [], []
    for sample in tqdm(samples, desc=f"checking {name}", unit="image", disable=not progress):
        problems, pixels, panoptic = [], None, None
        try:
            pixels, _ = read(sample["file_name"])
            damage = jpeg_damage(sample["file_name"])
            if damage:
                problems.append(
                    f"{sample['file_name']} is damaged ({damage}), so that a part of its picture "
                    "is wrong. Copy it again."
                )
            check_image_size(sample, pixels)
        except (OSError, ValueError) as error:
            problems.append(str(error))
        try:
            panoptic = read_panoptic_png(sample["pan_seg_file_name"])
            if pixels is not None:
                check_image_size({**sample, "height": pixels.shape[0], "width": pixels.shape[1]},
                                 pixels, panoptic)  # fmt: skip
            problems += label_problems(panoptic, sample, metadata)
        except (OSError, ValueError) as error:
            problems.append(str(error))
        if problems:
            survey.problems += problems
            survey.wrong_samples += 1
            continue
        survey.kinds[str(pixels.dtype), pixels.shape[2]] += 1
        few = pixels[:: 1 + pixels.shape[0] // 256, :: 1 + pixels.shape[1] // 256]
        values.append([pixels.min(), *np.percentile(few, (1, 99.8)), pixels.max()])
        segments.append(_measure(panoptic, sample["segments_info"], len(sizes)))
        sizes.append(panoptic.shape)
        survey.void_pixels += int((panoptic == 0).sum())
        survey.pixels += panoptic.size
    survey.sizes = np.array(sizes, np.int64).reshape(-1, 2)
    survey.values = np.array(values, np.float64).reshape(-1, 4)
    survey.segments = np.concatenate([np.empty(0, SEGMENT), *segments])
    return survey


def _measure(panoptic, segments_info, image):
    """``SEGMENT`` records of an image's segments."""
    ids, numbers = np.unique(panoptic, return_inverse=True)
    numbers = numbers.reshape(panoptic.shape) + 1
    boxes = dict(zip(ids.tolist(), ndimage.find_objects(numbers)))
    areas = dict(zip(ids.tolist(), np.bincount(numbers.ravel())[1:].tolist()))
    records = np.empty(len(segments_info), SEGMENT)
    for record, segment in zip(records, segments_info):
        rows, columns = boxes[segment["id"]]
        record["image"], record["category"] = image, segment["category_id"]
        record["area"], record["crowd"] = areas[segment["id"]], bool(segment.get("iscrowd", 0))
        record["height"], record["width"] = rows.stop - rows.start, columns.stop - columns.start
    return records
