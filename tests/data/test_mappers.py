"""From a dataset dict to what the model takes, for images of any shape and kind."""

import numpy as np
import pytest
from panopticapi.utils import id2rgb
from PIL import Image

from amwc_d2.config import load_config
from amwc_d2.data.images import ORIENTATION, ImageReader
from amwc_d2.data.mappers import AMWCDatasetMapper, InferenceMapper, ResizeShortestEdge
from amwc_d2.data.target_generator import AMWCTargetGenerator


@pytest.mark.parametrize(
    ("size", "resized"), [((4, 3000), (1, 128)), ((3000, 4), (128, 1)), ((32, 48), (64, 96))]
)
def test_a_side_never_vanishes(size, resized):
    image = np.zeros((*size, 3), np.uint8)
    transform = ResizeShortestEdge(64, 128).get_transform(image)
    assert transform.apply_image(image).shape == (*resized, 3)
    assert ResizeShortestEdge(0, 128).get_transform(image).apply_image(image).shape == image.shape


@pytest.fixture
def sample(tmp_path):
    """A photo stored on its side, 8x12 when upright, and its labels."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    upright = np.zeros((8, 12, 3), np.uint8)
    upright[:, :4] = 200
    Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90).save(
        tmp_path / "a.png", exif=exif
    )
    Image.fromarray(id2rgb(np.where(upright[..., 0] > 0, 2, 1))).save(tmp_path / "labels.png")
    segments = [{"id": i, "category_id": i - 1, "iscrowd": 0} for i in (1, 2)]
    return {"file_name": str(tmp_path / "a.png"), "segments_info": segments, "image_id": 1,
            "pan_seg_file_name": str(tmp_path / "labels.png")}  # fmt: skip


def training_mapper():
    generator = AMWCTargetGenerator(ignore_label=255, thing_ids=[1])
    return AMWCDatasetMapper(
        augmentations=[], image_reader=ImageReader(), panoptic_target_generator=generator
    )


def test_training_and_inference_see_the_same_upright_image(sample, repository):
    trained = training_mapper()(sample)
    assert (trained["height"], trained["width"]) == trained["image"].shape[1:] == (8, 12)
    assert np.array_equal(trained["image"][0] > 100, trained["segments"] == 1)
    assert not {"segments_info", "pan_seg_file_name"} & set(trained)
    cfg = load_config(repository / "configs/Base-AMWC-R18.yaml", ["INPUT.MIN_SIZE_TEST", 8])
    seen = InferenceMapper(cfg)({**sample, "sem_seg_file_name": "x"})
    assert np.array_equal(seen["image"], trained["image"])
    assert (seen["height"], seen["width"]) == (8, 12) and "sem_seg_file_name" not in seen
    cfg.merge_from_list(["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", [100.0]])
    assert InferenceMapper(cfg)(sample)["image"].shape == (1, 8, 12)


def test_wrong_samples_are_named(sample, tmp_path):
    mapper = training_mapper()
    with pytest.raises(ValueError, match=r"a.png is \(12, 8\) .*give it the width 8"):
        mapper({**sample, "width": 8, "height": 12})
    with pytest.raises(ValueError, match=r"labels.png .* does not list"):
        mapper({**sample, "segments_info": sample["segments_info"][:1]})
    Image.new("RGB", (4, 4)).save(tmp_path / "labels.png")
    with pytest.raises(ValueError, match=r"labels.png is \(4, 4\) .*must have the same size"):
        mapper(sample)
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "labels.png")
    (tmp_path / "labels.png").write_bytes((tmp_path / "labels.png").read_bytes()[:150])
    with pytest.raises(ValueError, match=r"labels.png cannot be read.*Is it complete"):
        mapper(sample)
