"""The toy set, the registration of panoptic data, and its errors."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from detectron2.evaluation import COCOPanopticEvaluator
from helpers import DATASETS
from panopticapi.utils import id2rgb
from PIL import Image
from scipy import ndimage

from amwc_d2.data import datasets, toy_dataset
from amwc_d2.data.panoptic_format import load_panoptic_json, read_panoptic_png
from amwc_d2.data.survey import survey_dataset
from amwc_d2.data.toy_dataset import make_toy_dataset
from amwc_d2.data.toy_scenes import CATEGORIES, draw_scene

POLE, PERSON = 17, 24


# ---------------------------------------------------------------------------- the toy set
@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(np.random.default_rng(seed)) for seed in range(40)]


def test_scene_depends_on_the_seed_alone(scenes):
    image, ids, segments_info = draw_scene(np.random.default_rng(7))
    assert np.array_equal(image, scenes[7][0]) and np.array_equal(ids, scenes[7][1])
    assert segments_info == scenes[7][2]
    assert not np.array_equal(image, scenes[8][0])


def test_segments_info_describes_the_map(scenes):
    for image, ids, segments_info in scenes:
        assert image.shape == (*ids.shape, 3) and image.dtype == np.uint8
        assert {s["id"] for s in segments_info} == set(np.unique(ids).tolist()) - {0}
        for segment in segments_info:
            rows, columns = np.nonzero(ids == segment["id"])
            x, y, width, height = segment["bbox"]
            assert segment["area"] == rows.size >= 64
            assert (x, x + width - 1) == (columns.min(), columns.max())
            assert (y, y + height - 1) == (rows.min(), rows.max())


def test_scenes_hold_what_makes_streets_hard(scenes):
    seen, crowds, in_pieces, touching, widths, with_void = set(), 0, 0, 0, [], 0
    for _, ids, segments_info in scenes:
        category = {s["id"]: s["category_id"] for s in segments_info}
        seen |= set(category.values())
        crowds += sum(s["iscrowd"] for s in segments_info)
        with_void += (ids == 0).any()
        for segment in segments_info:
            if segment["id"] > 1000 * POLE and not segment["iscrowd"]:
                mask = ids == segment["id"]
                pieces, count = ndimage.label(mask)
                sizes = ndimage.sum_labels(mask, pieces, range(1, count + 1))
                in_pieces += (sizes > 20).sum() > 1
                if segment["category_id"] == POLE:
                    widths.append(np.median(mask.sum(1)[mask.any(1)]))
        left, right = ids[:, :-1], ids[:, 1:]
        pairs = set(zip(left[left != right].tolist(), right[left != right].tolist()))
        touching += any(category.get(a) == category.get(b) for a, b in pairs if a and b)
    assert seen == {c["id"] for c in CATEGORIES}
    assert sum(c["isthing"] for c in CATEGORIES) >= 4 <= sum(not c["isthing"] for c in CATEGORIES)
    assert crowds > 3 and in_pieces > 40 and touching > 30 and with_void > 20
    assert np.median(widths) <= 5


def test_a_longer_set_begins_with_the_shorter(tmp_path, toy_root):
    longer = make_toy_dataset(tmp_path / "longer", num_train=13, num_val=7)
    for split, last in (("train", "000012"), ("val", "000006")):
        for file in (f"{split}/{last}.jpg", f"panoptic_{split}/{last}.png"):
            assert (longer / file).read_bytes() == (toy_root / file).read_bytes()
    train, val = (load_panoptic_json_of(toy_root, split) for split in ("train", "val"))
    assert train[0]["segments_info"] != val[0]["segments_info"]


def load_panoptic_json_of(root, split):
    return load_panoptic_json(
        root / f"panoptic_{split}.json", root / split, root / f"panoptic_{split}"
    )


def test_simultaneous_makers_draw_the_set_once(tmp_path, monkeypatch):
    drawn = []
    write_split = toy_dataset._write_split
    monkeypatch.setattr(
        toy_dataset, "_write_split", lambda *args: (drawn.append(args[1]), write_split(*args))
    )
    root = tmp_path / "toy"
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: make_toy_dataset(root, num_train=2, num_val=1), range(3)))
    assert drawn == ["train", "val"]
    assert len(load_panoptic_json_of(root, "train")) == 2
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["toy"]


def test_an_older_generator_is_redrawn_and_a_foreign_folder_kept(tmp_path):
    root = make_toy_dataset(tmp_path / "toy", num_train=1, num_val=1)
    stamp = json.loads((root / "toy_version.json").read_text())
    (root / "toy_version.json").write_text(json.dumps({**stamp, "generator": 0}))
    (root / "panoptic_val.json").unlink()
    assert not toy_dataset.is_current(root)
    make_toy_dataset(root, num_train=1, num_val=1)
    assert (root / "panoptic_val.json").is_file() and toy_dataset.is_current(root)

    (root / "toy_version.json").unlink()
    with pytest.raises(FileExistsError, match="Move it away"):
        make_toy_dataset(root)
    assert (root / "panoptic_val.json").is_file()


def test_toy_set_is_registered_and_sound(toy_root):
    metadata = datasets.check_panoptic_metadata(
        "toy_panoptic_train", "toy_panoptic_val", num_classes=10
    )
    assert metadata.stuff_classes[0] == "road" and len(metadata.stuff_classes) == 10
    assert sorted(metadata.thing_dataset_id_to_contiguous_id.values()) == [5, 6, 7, 8, 9]
    assert metadata.evaluator_type == "coco_panoptic_seg"
    report = datasets.check_panoptic_dataset("toy_panoptic_train", progress=False)
    assert report["images"] == 12 and report["segments"] > 120
    assert 0 < report["void_fraction"] < 0.2


def test_samples_equal_detectron2s_own_loader(toy_root):
    ours = DatasetCatalog.get("toy_panoptic_val")
    metadata = MetadataCatalog.get("toy_panoptic_val").as_dict()
    paths = [metadata[key] for key in ("panoptic_json", "image_root", "panoptic_root")]
    theirs = load_coco_panoptic_json(*paths, metadata)
    assert len(ours) == len(theirs) == 6
    for mine, other in zip(ours, theirs):
        assert {key: mine[key] for key in other} == other


# ---------------------------------------------------------------------------- other people's data
CATS = [
    {"id": "bg", "name": "background", "isthing": 0},
    {"id": "cell", "name": "cell", "isthing": 1},
]


@pytest.fixture
def folder(tmp_path, request):
    """A set of two 6x8 images, string ids, TIFF and PNG, in a folder of its own; unregistered."""
    root = DATASETS / f"mine_{request.node.name.split('[')[0][:40]}_{tmp_path.name}"
    info = {"images": [], "annotations": [], "categories": CATS}
    for stem, extension in (("a", ".tif"), ("sub/b", ".png")):
        ids = np.ones((6, 8), int)
        ids[1:3, 1:4], ids[4:, 5:] = 300, 70000
        info["annotations"].append(
            {
                "image_id": f"image-{stem}",
                "file_name": f"{stem}.png",
                "segments_info": [
                    {"id": 1, "category_id": "bg", "area": 36, "iscrowd": 0},
                    {"id": 300, "category_id": "cell", "area": 6, "iscrowd": 0},
                    {"id": 70000, "category_id": "cell", "area": 6, "iscrowd": 1},
                ],
            }
        )
        for split, pixels in (("train", ids.astype(np.uint8)), ("panoptic_train", id2rgb(ids))):
            file = root / split / (stem + (extension if split == "train" else ".png"))
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).convert("RGB").save(file)
    save(root, info)
    yield root
    shutil.rmtree(root)
    for name in [n for n in DatasetCatalog if n.startswith(root.name)]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def save(root, info):
    (root / "panoptic_train.json").write_text(json.dumps(info))


def register(folder):
    datasets.register_panoptic_folders()
    return f"{folder.name}_panoptic_train"


def test_any_folder_becomes_a_dataset(folder):
    name = register(folder)
    assert f"{folder.name}_panoptic_val" not in DatasetCatalog  # no JSON, no dataset
    metadata = datasets.check_panoptic_metadata(name)
    assert metadata.stuff_classes == metadata.thing_classes == ["background", "cell"]
    assert metadata.thing_dataset_id_to_contiguous_id == {"cell": 1}
    assert metadata.stuff_dataset_id_to_contiguous_id == {"bg": 0}
    assert metadata.stuff_colors[0] != metadata.stuff_colors[1]
    first, second = DatasetCatalog.get(name)
    assert (first["image_id"], second["image_id"]) == ("image-a", "image-sub/b")
    assert first["file_name"].endswith("train/a.tif")
    assert second["file_name"].endswith("train/sub/b.png")
    assert [s["category_id"] for s in first["segments_info"]] == [0, 1, 1]
    assert [s["isthing"] for s in first["segments_info"]] == [False, True, True]
    assert [s["iscrowd"] for s in first["segments_info"]] == [0, 0, 1]
    assert datasets.check_panoptic_dataset(name, progress=False) == {
        "images": 2,
        "segments": 6,
        "crowd_segments": 2,
        "void_fraction": 0.0,
    }


def test_detectron2_evaluates_string_ids(folder, tmp_path):
    name = register(folder)
    evaluator = COCOPanopticEvaluator(name, str(tmp_path))
    evaluator.reset()
    for sample in DatasetCatalog.get(name):
        ids = read_panoptic_png(sample["pan_seg_file_name"])
        prediction = torch.from_numpy(np.where(ids == 70000, 0, ids))  # the crowd left void
        segments = [
            {"id": s["id"], "category_id": s["category_id"], "isthing": s["isthing"]}
            for s in sample["segments_info"]
            if not s["iscrowd"]
        ]
        evaluator.process([sample], [{"panoptic_seg": (prediction, segments)}])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100.0


def test_registration_reads_no_json(folder):
    (folder / "panoptic_train.json").write_text("{broken")
    name = register(folder)
    with pytest.raises(ValueError, match=r"panoptic_train.json is not JSON.*Is it complete"):
        DatasetCatalog.get(name)
    with pytest.raises(ValueError, match="is not JSON"):
        MetadataCatalog.get(name).get("stuff_classes")
    assert MetadataCatalog.get(name).ignore_label == 255


def test_other_layouts(folder):
    (folder / "train" / "a.tif").rename(folder / "train" / "a_rgb.tif")
    (folder / "train" / "sub" / "b.png").rename(folder / "train" / "sub" / "b_rgb.tif")
    name = f"{folder.name}_other"
    paths = folder / "train", folder / "panoptic_train", folder / "panoptic_train.json"
    datasets.register_panoptic_dataset(name, *paths, image_suffix="_rgb.tif")
    assert DatasetCatalog.get(name)[1]["file_name"].endswith("sub/b_rgb.tif")
    (folder / "train" / "a_rgb.tif").rename(folder / "train" / "a_raw.tif")
    with pytest.raises(FileNotFoundError, match=r"no image a_rgb.tif.*correct image_suffix '_rgb"):
        DatasetCatalog.get(name)
    with pytest.raises(ValueError, match="already registered"):
        datasets.register_panoptic_dataset(name, *paths)


def test_the_listed_image_wins(folder):
    shutil.copy(folder / "train" / "a.tif", folder / "train" / "a.png")
    name = register(folder)
    with pytest.raises(ValueError, match=r"several images fit, \['a.png', 'a.tif'\]"):
        DatasetCatalog.get(name)
    info = json.loads((folder / "panoptic_train.json").read_text())
    image = {"id": "image-a", "file_name": "./a.tif", "height": 6, "width": 8}
    other = {"id": "image-sub/b", "file_name": "sub\\b.png"}
    save(folder, {**info, "images": [image, other]})
    sample = DatasetCatalog.get(name)[0]
    assert sample["file_name"].endswith("a.tif")
    assert (sample["height"], sample["width"]) == (6, 8)


# ---------------------------------------------------------------------------- errors
def segment(info):
    return info["annotations"][0]["segments_info"][1]


MISTAKES = {
    "unknown category": (
        lambda info: segment(info).update(category_id=9),
        r"image image-a \(a.png\): segment 300 has the unknown category 9; known are "
        r"\['bg', 'cell'\]. Add it",
    ),
    "id twice": (lambda info: segment(info).update(id=1), "a.png.*segment id 1 comes twice"),
    "id zero": (lambda info: segment(info).update(id=0), "a.png.*segment id 0.*means void"),
    "id as text": (lambda info: segment(info).update(id="300"), "a.png.*segment id '300'"),
    "crowd as text": (
        lambda info: segment(info).update(iscrowd="0"),
        "panoptic_train.json.*a.png.*segment 300 has iscrowd '0'; expected the number",
    ),
    "area as text": (lambda info: segment(info).update(area="6"), "segment 300 has area '6'"),
    "isthing as text": (
        lambda info: info["categories"][0].update(isthing="0"),
        "category 'bg' has isthing '0'; expected the number",
    ),
    "colour of two": (
        lambda info: info["categories"][0].update(color=[1, 2]),
        r"has colour \[1, 2\]",
    ),
    "two classes of a name": (
        lambda info: info["categories"][0].update(name="cell"),
        r"several categories are called \['cell'\]",
    ),
    "annotated twice": (
        lambda info: info["annotations"][1].update(image_id="image-a"),
        r"two annotations, of a.tif with a.png and of sub/b.png with sub/b.png, share the image id",
    ),
    "labels used twice": (
        lambda info: info["annotations"][1].update(file_name="a.png"),
        "share the labels a.png",
    ),
    "image id twice": (
        lambda info: info.update(images=[{"id": 1, "file_name": f} for f in ("a.tif", "b.tif")]),
        r"two entries with id 1: a.tif \(id 1\) and b.tif \(id 1\). Were two JSONs merged",
    ),
    "image unlisted": (
        lambda info: info.update(images=[{"id": 1, "file_name": "a.tif"}]),
        "'images' does not list id 'image-a', its ids look like 1",
    ),
    "listed image missing": (
        lambda info: info.update(images=[{"id": "image-a", "file_name": "other.tif"}]),
        "no image other.tif in .*as 'images' calls it. a.tif is there",
    ),
    "labels called jpg": (
        lambda info: info["annotations"][0].update(file_name="a.jpg"),
        "labels of image 'image-a' are called a.jpg; expected a name in .png",
    ),
    "an instances JSON": (
        lambda info: info["annotations"][0].update(segmentation=[[1, 1, 1, 5, 5, 5]]),
        "is an instances JSON of COCO.*import_dataset",
    ),
    "no crowd flag": (lambda info: segment(info).pop("iscrowd"), "a.png.*has no 'iscrowd'"),
    "no area": (lambda info: segment(info).pop("area"), "a.png.*300.*has no 'area'. Add it"),
    "no png": (
        lambda info: info["annotations"][0].update(file_name="gone.png"),
        "panoptic_train/gone.png does not exist.*image-a. Add the PNG",
    ),
    "instances": (
        lambda info: info["annotations"][0].pop("segments_info"),
        "image-a has no 'segments_info'.*instances JSON",
    ),
    "no categories": (lambda info: info.pop("categories"), "has no list 'categories'"),
    "category without name": (
        lambda info: info["categories"][1].pop("name"),
        r"panoptic_train.json: category .*'cell'.* has no 'name'",
    ),
    "same category twice": (
        lambda info: info["categories"][1].update(id="bg"),
        r"must be there and differ, got \['bg', 'bg'\]",
    ),
    "nothing": (lambda info: info["annotations"].clear(), "'annotations' is empty"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_json(folder, mistake):
    info = json.loads((folder / "panoptic_train.json").read_text())
    spoil, message = MISTAKES[mistake]
    spoil(info)
    save(folder, info)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        DatasetCatalog.get(register(folder))


def test_missing_files(folder):
    name = register(folder)
    (folder / "train" / "a.tif").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"image image-a \(a.png\): no image a.* in .*train"
    ):
        DatasetCatalog.get(name)
    shutil.rmtree(folder / "train")
    with pytest.raises(FileNotFoundError, match="train is not a folder"):
        DatasetCatalog.get(name)
    (folder / "panoptic_train.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"panoptic_train.json does not exist"):
        MetadataCatalog.get(name).as_dict()


WRONG_PNGS = {
    "PNG has ids [9]": lambda ids: id2rgb(np.where(ids == 1, 9, ids)),
    "which the PNG does not have": lambda ids: id2rgb(np.where(ids == 300, 0, ids)),
    "has area 36 in the JSON and 35": lambda ids: id2rgb(
        ids + 299 * (np.arange(48) == 0).reshape(6, 8)
    ),
    "Both must have the same size": lambda ids: id2rgb(np.pad(ids, 1)),
    "has mode L, expected RGB": lambda ids: ids.astype(np.uint8),
    "Red and blue are swapped": lambda ids: id2rgb(ids)[..., ::-1],
    "colours of the classes": lambda ids: np.where(
        ids[..., None] == 1, (128, 0, 0), (0, 128, 0)
    ).astype(np.uint8),
    "grey image of ids": lambda ids: np.repeat(ids[..., None] % 251, 3, 2).astype(np.uint8),
    "So many come of JPEG": lambda ids: id2rgb(
        ids + np.random.default_rng(0).integers(0, 200, ids.shape)
    ),
}


@pytest.mark.parametrize("message", WRONG_PNGS)
def test_check_names_the_wrong_png(folder, message):
    file = folder / "panoptic_train" / "a.png"
    Image.fromarray(WRONG_PNGS[message](read_panoptic_png(file))).save(file)
    with pytest.raises(ValueError) as error:
        datasets.check_panoptic_dataset(register(folder), progress=False)
    assert "1 of 2 samples" in str(error.value)
    assert "a.png" in str(error.value) and message in str(error.value)


def spoil_crowds(info, folder):
    info["annotations"][0]["segments_info"][1]["iscrowd"] = 1


def spoil_stuff(info, folder):
    info["annotations"][0]["segments_info"][1]["category_id"] = "bg"


def spoil_image(info, folder):
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "train" / "a.tif", format="PNG")
    file = folder / "train" / "a.tif"
    file.write_bytes(file.read_bytes()[:120])


def spoil_sizes(info, folder):
    info["images"] = [
        {"id": "image-a", "file_name": "a.tif", "height": 8, "width": 6},
        {"id": "image-sub/b", "file_name": "sub/b.png", "height": 6, "width": 8},
    ]


def spoil_png(info, folder):
    file = folder / "panoptic_train" / "a.png"
    Image.open(file).save(file, format="JPEG")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_crowds, r"a.png: 2 crowd regions of class 'cell' \(ids \[300, 70000\]\)"),
        (spoil_stuff, r"a.png: 2 segments of stuff 'background' \(ids \[1, 300\]\)"),
        (spoil_image, r"a.tif cannot be read as an image"),
        (spoil_sizes, r"a.tif is \(8, 6\) pixels .* give it the width 6"),
        (spoil_png, r"a.png is a JPEG file whatever its name"),
    ],
)
def test_check_opens_everything(folder, spoil, message):
    info = json.loads((folder / "panoptic_train.json").read_text())
    spoil(info, folder)
    # another mistake, in the other image: both are listed
    info["annotations"][1]["segments_info"][0]["area"] = 5
    save(folder, info)
    with pytest.raises(ValueError, match=message) as error:
        datasets.check_panoptic_dataset(register(folder), progress=False)
    assert "2 of 2 samples" in str(error.value)
    assert "b.png: segment 1 has area 5" in str(error.value)


def test_the_json_is_parsed_once(folder, monkeypatch):
    loads = []
    load = json.load
    monkeypatch.setattr(json, "load", lambda file: (loads.append(1), load(file))[1])
    name = register(folder)
    datasets.check_panoptic_metadata(name)
    assert len(DatasetCatalog.get(name)) == 2 and len(loads) == 1
    info = json.loads((folder / "panoptic_train.json").read_text())
    info["annotations"].pop()
    save(folder, info)  # a changed file is read anew
    assert len(DatasetCatalog.get(name)) == 1 and len(loads) == 2


def test_a_byte_order_mark(folder):
    file = folder / "panoptic_train.json"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert len(DatasetCatalog.get(register(folder))) == 2


def test_unannotated_images_are_mentioned(folder, caplog):
    info = json.loads((folder / "panoptic_train.json").read_text())
    info["images"] = [
        {"id": "image-a", "file_name": "a.tif"}, {"id": "image-sub/b", "file_name": "sub/b.png"},
    ]  # fmt: skip
    info["annotations"].pop()
    save(folder, info)
    DatasetCatalog.get(register(folder))
    assert "1 of 2 images have no annotation" in caplog.text


def test_a_survey_measures_segments(folder):
    found = survey_dataset(register(folder), progress=False)
    assert found.classes == ["background", "cell"] and found.is_thing.tolist() == [False, True]
    assert found.sizes.tolist() == [[6, 8], [6, 8]] and found.kinds == {("uint8", 3): 2}
    assert found.areas(1).tolist() == [6, 6] and found.areas(0).tolist() == [36, 36]
    cell = found.segments[found.segments["category"] == 1][0]
    assert (cell["height"], cell["width"], cell["crowd"]) == (2, 3, False)


def test_find_datasets(folder):
    name = register(folder)
    for given in (name, folder.name, str(folder)):
        assert datasets.find_datasets(given) == [name]
    with pytest.raises(KeyError, match="not registered"):
        datasets.find_datasets("nothing_like_it")


def test_the_ignored_value_is_that_of_the_dataset(folder):
    with pytest.raises(ValueError, match=r"IGNORE_VALUE is 0, but .* 255: class 0 would never"):
        datasets.check_panoptic_metadata(register(folder), ignore_value=0)


def test_metadata_errors(folder, toy_root):
    name = register(folder)
    with pytest.raises(KeyError, match=r"Did you mean \['toy_panoptic_train'"):
        datasets.check_panoptic_metadata("toy_panoptic_trian")
    other = name.replace("train", "val")
    with pytest.raises(KeyError, match=r"not its panoptic_val.json .*it holds \['panoptic_train"):
        datasets.check_panoptic_metadata(other)
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 3, but .* has 2 classes"):
        datasets.check_panoptic_metadata(name, num_classes=3)
    with pytest.raises(ValueError, match="differ in their classes"):
        datasets.check_panoptic_metadata(name, "toy_panoptic_train")
    with pytest.raises(ValueError, match="use the standard ones"):
        datasets.check_panoptic_metadata("coco_2017_val_panoptic_separated")
    with pytest.raises(ValueError, match="has no 'thing_dataset_id_to_contiguous_id'"):
        datasets.check_panoptic_metadata("ade20k_sem_seg_val")
    other = f"{folder.name}_swapped"
    info = json.loads((folder / "panoptic_train.json").read_text())
    info["categories"][0]["isthing"] = 1
    (folder / "swapped.json").write_text(json.dumps(info))
    datasets.register_panoptic_dataset(
        other, folder / "train", folder / "panoptic_train", folder / "swapped.json"
    )
    with pytest.raises(ValueError, match=r"which classes are things: \['background'\]"):
        datasets.check_panoptic_metadata(name, other)


def test_no_class_may_be_the_ignored_one(folder):
    info = json.loads((folder / "panoptic_train.json").read_text())
    more = [{"id": 1000 + i, "name": f"more {i}", "isthing": 1} for i in range(254)]
    save(folder, {**info, "categories": info["categories"] + more})
    with pytest.raises(ValueError, match=r"has 256 classes.*Use at most 255 classes"):
        datasets.check_panoptic_metadata(register(folder))
    with pytest.raises(ValueError, match=r"set DATASETS.TRAIN or DATASETS.TEST"):
        datasets.check_panoptic_metadata()


def test_missing_data_of_detectron2s_own_datasets(tmp_path, monkeypatch):
    def missing():
        raise AssertionError("Please run createPanopticImgs.py")

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in ("cityscapes_fine_panoptic_missing", "another_missing"):
        DatasetCatalog.register(name, missing)
    message = rf"\['cityscapes_fine_panoptic_missing'\].*{tmp_path}.*csCreatePanopticImgs"
    try:
        with pytest.raises(FileNotFoundError, match=message):
            datasets.load_samples(["cityscapes_fine_panoptic_missing"])
        with pytest.raises(AssertionError, match="Please run"):
            datasets.load_samples("another_missing")
    finally:
        for name in ("cityscapes_fine_panoptic_missing", "another_missing"):
            DatasetCatalog.remove(name)


# ---------------------------------------------------------------------------- known datasets
def test_detectron2s_cityscapes(fake_cityscapes):
    names = [f"cityscapes_fine_panoptic_{split}" for split in ("train", "val")]
    datasets.check_panoptic_metadata(*names, num_classes=19)
    for name in names:
        report = datasets.check_panoptic_dataset(name, progress=False)
        assert report["images"] == 2 and report["segments"] > 20
    assert "cityscapes_panoptic_train" not in DatasetCatalog


def test_detectron2s_names_and_folders_are_left_alone(tmp_path, monkeypatch):
    before = dict(DatasetCatalog)
    for name in ("coco", "cityscapes", "cityscapes_fine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "panoptic_val.json").write_text("{}")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    datasets.register_panoptic_folders()
    assert dict(DatasetCatalog) == before


@pytest.mark.data
@pytest.mark.parametrize(
    ("folders", "num_classes"),
    [
        (("dsb2018/val", "dsb2018/panoptic_val", "dsb2018/panoptic_val.json"), 4),
        (("coco/val2017", "coco/panoptic_val2017", "coco/annotations/panoptic_val2017.json"), 133),
    ],
)
def test_real_images(real_data, folders, num_classes):
    if not (real_data / folders[0]).is_dir():
        pytest.skip(f"no {folders[0]} in {real_data}")
    name = "real_" + folders[0].replace("/", "_")
    datasets.register_panoptic_dataset(name, *(real_data / folder for folder in folders))
    try:
        datasets.check_panoptic_metadata(name, num_classes=num_classes)
        listed = len(json.loads((real_data / folders[2]).read_text())["annotations"])
        assert datasets.check_panoptic_dataset(name, progress=False)["images"] == listed
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
