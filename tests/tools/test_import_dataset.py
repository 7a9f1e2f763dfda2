"""From each layout that people have to a dataset that passes the check, with configs that train."""

import json
import shutil

import check_dataset
import import_dataset
import numpy as np
import pytest
import suggest_config
import tifffile
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers import DATASETS
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as rle

from amwc_d2.config import load_config
from amwc_d2.data.importers import parse_class, read_labels, write_pixels
from amwc_d2.data.panoptic_format import read_panoptic_png
from amwc_d2.engine.trainer import Trainer

HEIGHT, WIDTH = 48, 64


def scene(seed):
    """Instances 1..3 on 0 and the class map: 0 = background, 1 = cell, 2 = a stripe."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    for i in range(3):
        y, x = rng.integers(0, HEIGHT - 14), 20 * i + rng.integers(0, 8)
        ids[y : y + 12, x : x + 12] = i + 1
    classes = (ids > 0).astype(np.uint8)
    classes[:2] = 2
    ids[:2] = 0
    return ids, classes


def picture(ids, seed):
    noise = np.random.default_rng(seed).integers(0, 60, ids.shape)
    return (noise + np.where(ids > 0, 150, 30)).astype(np.uint8)


def label_images(root):
    (root / "raw/deep").mkdir(parents=True)
    (root / "labels/deep").mkdir(parents=True)
    for i in range(6):
        ids, _ = scene(i)
        image = picture(ids, i).astype(np.uint16) * 257
        tifffile.imwrite(root / f"raw/deep/{i}.tif", image)
        if i % 3 == 0:
            np.save(root / f"labels/deep/{i}.npy", ids.astype(np.int32))
        elif i % 3 == 1:
            tifffile.imwrite(root / f"labels/deep/{i}_mask.tif", ids)
        else:
            Image.fromarray(ids).save(root / f"labels/deep/{i}.png")
    return ["--images", root / "raw", "--labels", root / "labels", "--classes", "cell"]


def class_maps(root):
    (root / "raw").mkdir(parents=True)
    (root / "maps").mkdir(parents=True)
    for i in range(6):
        ids, classes = scene(i)
        Image.fromarray(picture(ids, i)).save(root / f"raw/{i}.jpg")
        colours = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)
        Image.fromarray(colours[classes]).save(root / f"maps/{i}.png")
    classes = "#000000=background", "#ff0000=cell:thing", "#0000ff=stripe:stuff"
    return ["--images", root / "raw", "--labels", root / "maps", "--layout", "classes",
            "--classes", *classes]  # fmt: skip


def object_masks(root):
    for i in range(6):
        ids, _ = scene(i)
        folder = root / f"stage1_train/{i:016x}"
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        bright = 255 - picture(ids, i) if i % 2 else picture(ids, i)
        Image.fromarray(bright).convert("RGBA").save(folder / f"images/{i:016x}.png")
        for k in range(1, 4):
            Image.fromarray((ids == k).astype(np.uint8) * 255).save(folder / f"masks/{k}.png")
    return ["--images", root / "stage1_train", "--layout", "masks", "--classes", "nucleus"]


def coco(root):
    (root / "photos").mkdir(parents=True)
    info = {"images": [], "annotations": [], "categories": [
        {"id": 7, "name": "cell"}, {"id": 9, "name": "stripe"}, {"id": 3, "name": "group"},
    ]}  # fmt: skip
    for i in range(6):
        ids, classes = scene(i)
        Image.fromarray(picture(ids, i)).save(root / f"photos/{i}.png")
        info["images"].append({"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH})
        for k in range(1, 4):
            rows, columns = np.nonzero(ids == k)
            y, x, b, r = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
            polygon = [[int(v) for v in (x, y, r, y, r, b, x, b)]]
            info["annotations"].append({"image_id": i, "category_id": 7, "segmentation": polygon,
                                        "iscrowd": 0})  # fmt: skip
        for part in (np.s_[:, :32], np.s_[:, 32:]):  # stuff in two annotations
            mask = np.zeros_like(classes)
            mask[part] = (classes == 2)[part]
            code = rle.encode(np.asfortranarray(mask))
            code["counts"] = code["counts"].decode()
            info["annotations"].append({"image_id": i, "category_id": 9, "segmentation": code,
                                        "iscrowd": 0})  # fmt: skip
    (root / "instances.json").write_text(json.dumps(info))
    return ["--images", root / "photos", "--labels", root / "instances.json", "--stuff", "stripe"]


def cityscapes(root):
    for i in range(6):
        ids, classes = scene(i)
        split = "train" if i < 4 else "val"
        instance_ids = np.where(ids > 0, 26000 + ids, 7).astype(np.uint16)  # cars on the road
        instance_ids[classes == 2], instance_ids[-3:] = 23, 0  # sky; not evaluated
        stem = f"town_{i:06d}_000019"
        for folder, name, pixels in (
            ("leftImg8bit", f"{stem}_leftImg8bit.png", picture(ids, i)),
            ("gtFine", f"{stem}_gtFine_instanceIds.png", instance_ids),
        ):
            (root / folder / split / "town").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / split / "town" / name)
    return ["--images", root, "--layout", "cityscapes", "--classes", "7=road", "23=sky",
            "26=car:thing"]  # fmt: skip


LAYOUTS = {
    "instances": (label_images, ["background", "cell"], 4),
    "classes": (class_maps, ["background", "cell", "stripe"], 5),
    "masks": (object_masks, ["background", "nucleus"], 4),
    "coco": (coco, ["background", "cell", "stripe", "group"], 5),
    "cityscapes": (cityscapes, ["road", "sky", "car"], 5),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that imports and returns the config; the dataset is gone after the test."""
    names = []
    monkeypatch.setattr(suggest_config, "seconds_per_step", lambda config: 1.0)

    def run(name, *arguments):
        names.append(name)
        arguments = [name, *map(str, arguments), "--configs", str(tmp_path / "configs")]
        return import_dataset.main(import_dataset.get_parser().parse_args(arguments))[1]

    yield run
    for name in names:
        shutil.rmtree(DATASETS / name, ignore_errors=True)
        for split in ("train", "val"):
            if f"{name}_panoptic_{split}" in DatasetCatalog:
                DatasetCatalog.remove(f"{name}_panoptic_{split}")
                MetadataCatalog.remove(f"{name}_panoptic_{split}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout(layout, run, tmp_path):
    write, classes, segments = LAYOUTS[layout]
    name = f"imported_{layout}"
    config = run(name, *write(tmp_path / "source"))
    assert MetadataCatalog.get(f"{name}_panoptic_train").stuff_classes == classes
    samples = [s for k in ("train", "val") for s in DatasetCatalog.get(f"{name}_panoptic_{k}")]
    assert len(samples) == 6 and len(DatasetCatalog.get(f"{name}_panoptic_val")) in (1, 2)
    for sample in samples:
        assert len(sample["segments_info"]) == segments
        things = [s for s in sample["segments_info"] if s["isthing"]]
        assert len(things) == 3 and all(s["area"] <= 144 for s in things)
        number = int(next(c for c in sample["file_name"].split("/")[-1][::-1] if c.isdigit()))
        if layout != "cityscapes":
            ids, _ = scene(number)
            painted = read_panoptic_png(sample["pan_seg_file_name"])
            assert np.array_equal(np.isin(painted, [s["id"] for s in things]), ids > 0)
    cfg = load_config(config, ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 2])
    assert len(classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    batch = next(iter(Trainer.build_train_loader(cfg)))
    assert batch[0]["image"].shape[0] == 3 and (batch[0]["segments"] >= 0).any()


def test_the_suggested_configs_train(run, tmp_path):
    config = run("imported_trained", *label_images(tmp_path / "source"))
    text = config.read_text()
    assert "# cells of 4 pixels" in text and "measured here" in text
    options = ["SOLVER.MAX_ITER", 1, "SOLVER.IMS_PER_BATCH", 2, "MODEL.DEVICE", "cpu",
               "OUTPUT_DIR", str(tmp_path / "out")]  # fmt: skip
    Trainer(load_config(config, options)).train()
    assert (tmp_path / "out/model_final.pth").is_file()
    stage_2 = load_config(config.with_name("amwc_R18_e2e.yaml"), [])
    assert stage_2.MODEL.AMWC.STAGE == "end_to_end"
    low, high = stage_2.MODEL.AMWC.GRADIENT.LAMBDA_RANGE
    assert 0 < low < high and stage_2.INPUT.MIN_SIZE_TEST == load_config(config).INPUT.MIN_SIZE_TEST
    table = check_dataset.get_parser().parse_args(
        ["imported_trained", "--config-file", str(config), "--sheet", str(tmp_path / "sheet.png"),
         "--ceiling-images", "2"]
    )  # fmt: skip
    assert check_dataset.main(table)
    assert Image.open(tmp_path / "sheet.png").size[0] > 1000


def test_the_check_names_what_a_config_needs(run, tmp_path, caplog):
    for folder in ("raw", "labels"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        ids, _ = scene(i)
        two = np.stack([picture(ids, i), picture(ids, i + 9)]).astype(np.float32) * 10
        tifffile.imwrite(tmp_path / f"raw/{i}.tif", two, metadata={"axes": "CYX"})
        tifffile.imwrite(tmp_path / f"labels/{i}.tif", ids)
    config = run("imported_two", "--images", tmp_path / "raw", "--labels", tmp_path / "labels")
    cfg = load_config(config)
    assert cfg.INPUT.FORMAT == "ALL" and len(cfg.MODEL.PIXEL_MEAN) == 2
    assert cfg.INPUT.SCALING == "values" and cfg.INPUT.SCALING_RANGE[1] > 1500
    sheet = str(tmp_path / "sheet.png")
    arguments = ["imported_two", "--sheet", sheet, "--ceiling-images", "0"]
    assert check_dataset.main(check_dataset.get_parser().parse_args(arguments))
    assert "must set INPUT.SCALING" in caplog.text and Image.open(sheet).size[0] > 1000
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 2])
    image = next(iter(Trainer.build_train_loader(cfg)))[0]["image"]
    assert image.shape[0] == 2 and image.std() > 20
    info = json.loads((DATASETS / "imported_two/panoptic_val.json").read_text())
    info["annotations"][0]["segments_info"][0]["area"] += 1
    (DATASETS / "imported_two/panoptic_val.json").write_text(json.dumps(info))
    assert not check_dataset.main(check_dataset.get_parser().parse_args(arguments))


def test_groups_tiles_and_specks(run, tmp_path):
    arguments = object_masks(tmp_path / "source")
    run("imported_groups", *arguments, "--groups", "brightness", "--tile", 40, "--min-area", 20)
    metadata = MetadataCatalog.get("imported_groups_panoptic_train")
    assert metadata.stuff_classes == [
        "background_dark", "background_light", "nucleus_dark", "nucleus_light",
    ]  # fmt: skip
    samples = [s for k in ("train", "val") for s in
               DatasetCatalog.get(f"imported_groups_panoptic_{k}")]  # fmt: skip
    assert len(samples) == 6 * 4 and {(s["height"], s["width"]) for s in samples} == {(24, 32)}
    for sample in samples:
        odd = int(sample["file_name"].split("/")[-1].split("_")[0], 16) % 2
        assert {s["category_id"] % 2 for s in sample["segments_info"]} == {odd}
        assert all(s["area"] >= 20 for s in sample["segments_info"] if s["isthing"])


def test_stacks_become_images(run, tmp_path):
    scenes = [scene(i)[0] for i in range(5)]
    for folder in ("raw", "labels"):
        (tmp_path / folder).mkdir()
    stack = np.stack([picture(ids, 0) for ids in scenes])
    tifffile.imwrite(tmp_path / "raw/a.tif", stack)
    tifffile.imwrite(tmp_path / "labels/a.tif", np.stack(scenes))
    run("imported_stack", "--images", tmp_path / "raw", "--labels", tmp_path / "labels")
    train, val = (DatasetCatalog.get(f"imported_stack_panoptic_{k}") for k in ("train", "val"))
    assert (len(train), len(val)) == (4, 1)
    name = train[0]["file_name"].split("/")[-1]
    page = int(name.removeprefix("a_").removesuffix(".png"))
    assert np.array_equal(np.asarray(Image.open(train[0]["file_name"])), stack[page])


def test_a_binary_mask_is_split_into_its_parts(run, tmp_path):
    (tmp_path / "both").mkdir()
    for i in range(2):
        ids, _ = scene(i)
        Image.fromarray(picture(ids, i)).save(tmp_path / f"both/{i}.png")
        Image.fromarray((ids > 0).astype(np.uint8) * 255).save(tmp_path / f"both/{i}_masks.png")
    run("imported_binary", "--images", tmp_path / "both")
    for split in ("train", "val"):
        (sample,) = DatasetCatalog.get(f"imported_binary_panoptic_{split}")
        assert len(sample["segments_info"]) == 4


def spoil_value(root):
    Image.fromarray(np.full((HEIGHT, WIDTH), 9, np.uint8)).save(root / "source/maps/0.png")


def spoil_size(root):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "source/maps/0.png")


def spoil_jpeg(root):
    Image.open(root / "source/maps/0.png").save(root / "source/maps/0.png", format="JPEG")


def spoil_names(root):
    for file in (root / "source/maps").iterdir():
        file.rename(file.with_name("x" + file.name))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_value, r"0.png holds the values \[9\], which --classes does not name"),
        (spoil_size, r"0.jpg is \(48, 64\) pixels .* its labels are \(8, 8\)"),
        (spoil_jpeg, r"0.png is a JPEG, whose compression changes labels"),
        (spoil_names, r"no image of .* has a label in .*NAME_mask"),
    ],
)
def test_wrong_input_is_named(spoil, message, run, tmp_path):
    arguments = class_maps(tmp_path / "source")
    spoil(tmp_path)
    with pytest.raises(SystemExit, match=message):
        run("imported_wrong", *arguments)
    assert not (DATASETS / "imported_wrong").exists()


def test_wrong_arguments(run, tmp_path):
    maps = class_maps(tmp_path / "source")
    with pytest.raises(SystemExit, match=r"The first maps hold #000000|The first maps hold 0 \("):
        run("imported_wrong", *maps[:6])
    with pytest.raises(SystemExit, match="gone does not exist"):
        run("imported_wrong", "--images", tmp_path / "gone")
    with pytest.raises(ValueError, match="'a=b=c' is not understood"):
        parse_class("a=b=c", True)
    (DATASETS / "imported_wrong").mkdir()
    with pytest.raises(SystemExit, match=r"imported_wrong exists. Move it away"):
        run("imported_wrong", *maps)


def test_pixels_and_labels_come_back(tmp_path):
    rng = np.random.default_rng(0)
    for kind, channels in ((np.uint8, 1), (np.uint8, 3), (np.uint16, 1), (np.uint16, 3),
                           (np.float32, 1), (np.uint8, 5), (np.uint8, 2)):  # fmt: skip
        pixels = rng.integers(0, 255, (6, 8, channels)).astype(kind)
        file = write_pixels(tmp_path / f"{kind.__name__}{channels}", pixels)
        read, _ = import_dataset.importers.read_pixels(file)
        assert read.dtype == kind and np.array_equal(read, pixels)
    labels = rng.integers(0, 3, (6, 8)).astype(np.uint8)
    palette = Image.fromarray(labels, mode="L").convert("P")
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200])
    palette.putdata(labels.ravel().tolist())
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_labels(tmp_path / "palette.png"), labels)
    Image.fromarray(id2rgb(labels.astype(int) * 1000)).save(tmp_path / "colours.png")
    assert read_labels(tmp_path / "colours.png").max() > 65535
    np.save(tmp_path / "half.npy", labels + 0.5)
    with pytest.raises(ValueError, match="expected the numbers 0, 1, 2"):
        read_labels(tmp_path / "half.npy")
