"""Images are read as they are: depth, channels, TIFF, orientation, stacks, damage."""

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.data.detection_utils import read_image
from PIL import Image

from amwc_d2.data import images
from amwc_d2.data.images import ImageReader, check_pixels, image_size, jpeg_damage

GREY = np.add.outer(np.arange(24), np.arange(40)).astype(np.uint8) * 4  # (24, 40), 0..248
COLOURS = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)


def write_tiff(file, pixels, **kwargs):
    tifffile.imwrite(file, pixels, **kwargs)


WRITERS = {
    "16-bit PNG": ("a.png", lambda f: Image.fromarray(GREY.astype(np.uint16) * 257).save(f)),
    "16-bit TIFF": ("a.tif", lambda f: write_tiff(f, GREY.astype(np.uint16) * 257)),
    "big-endian TIFF": (
        "a.tif", lambda f: write_tiff(f, GREY.astype(np.uint16) * 257, byteorder=">"),
    ),
    "float TIFF": ("a.tif", lambda f: write_tiff(f, GREY.astype(np.float32) / 255)),
    "deflated TIFF": ("a.tiff", lambda f: write_tiff(f, GREY, compression="zlib")),
    "LZW TIFF": ("a.tif", lambda f: Image.fromarray(GREY).save(f, compression="tiff_lzw")),
    "white is zero": ("a.tif", lambda f: write_tiff(f, 255 - GREY, photometric="miniswhite")),
    "TIFF called PNG": ("a.png", lambda f: write_tiff(f.with_suffix(".tif"), GREY) or
                        f.with_suffix(".tif").rename(f)),
    "grey PNG": ("a.png", lambda f: Image.fromarray(GREY).save(f)),
    "grey and alpha": ("a.png", lambda f: Image.fromarray(GREY).convert("LA").save(f)),
    "palette": ("a.png", lambda f: Image.fromarray(GREY).convert("P").save(f)),
    "16-bit PGM": ("a.pgm", lambda f: Image.fromarray(GREY.astype(np.uint16) * 257).save(f)),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_grey_images_of_any_kind(kind, tmp_path):
    name, write = WRITERS[kind]
    write(tmp_path / name)
    picture = ImageReader()(tmp_path / name)
    assert picture.dtype == np.uint8 and np.array_equal(picture, np.repeat(GREY[..., None], 3, 2))
    assert np.array_equal(ImageReader("L", channels=1)(tmp_path / name)[..., 0], GREY)
    assert image_size(tmp_path / name) == GREY.shape


def test_colours_of_any_kind(tmp_path):
    deep = COLOURS.astype(np.uint16) * 257
    rgba = np.dstack([COLOURS, np.full_like(GREY, 7)])
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    tifffile.imwrite(
        tmp_path / "planes.tif", np.moveaxis(COLOURS, 2, 0), photometric="rgb",
        planarconfig="separate",
    )  # fmt: skip
    tifffile.imwrite(tmp_path / "alpha.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    for file in tmp_path.iterdir():
        assert np.array_equal(ImageReader()(file), COLOURS), file.name
        assert np.array_equal(ImageReader("BGR")(file), COLOURS[..., ::-1]), file.name
    for array in (COLOURS, deep, deep.astype(">u2"), rgba, COLOURS / 255):
        assert np.array_equal(ImageReader()(array), COLOURS)
    reader = ImageReader("BGR")
    assert np.array_equal(reader.to_rgb(reader(COLOURS)), COLOURS)


def test_ordinary_photos_are_read_as_detectron2_reads_them(tmp_path):
    for mode, name in (("RGB", "a.jpg"), ("CMYK", "b.jpg"), ("L", "c.jpg"), ("P", "d.png")):
        Image.fromarray(COLOURS).convert(mode).save(tmp_path / name)
        for form, channels in (("RGB", 3), ("BGR", 3), ("L", 1)):
            ours = ImageReader(form, channels=channels)(tmp_path / name)
            assert np.array_equal(ours, read_image(str(tmp_path / name), form)), (mode, form)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation, tmp_path):
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    tifffile.imwrite(tmp_path / "a.tif", GREY, extratags=[(274, 3, 1, orientation, True)])
    upright = read_image(str(tmp_path / "a.png"), "RGB")
    for file in ("a.png", "a.tif"):
        assert np.array_equal(ImageReader()(tmp_path / file), upright)
    assert image_size(tmp_path / "a.png") == upright.shape[:2]


def test_many_channels(tmp_path):
    five = np.stack([GREY, GREY // 2, GREY // 3, GREY // 4, 255 - GREY])
    tifffile.imwrite(tmp_path / "five.tif", five, imagej=True, metadata={"axes": "CYX"})
    every = ImageReader("ALL", channels=5)(tmp_path / "five.tif")
    assert every.dtype == np.float32 and np.array_equal(every, np.moveaxis(five, 0, 2))
    with pytest.raises(ValueError, match=r"five.tif has 5 channels.*'ALL'"):
        ImageReader()(tmp_path / "five.tif")
    four = five[:4]  # four stains are not RGB and alpha
    tifffile.imwrite(tmp_path / "four.tif", four, imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(ValueError, match="has 4 channels"):
        ImageReader()(tmp_path / "four.tif")
    with pytest.raises(ValueError, match="has 3 channels, but the network takes 5"):
        ImageReader("ALL", channels=5)(COLOURS)


def test_scaling():
    counts = 1000 + GREY.astype(np.int32) * 10  # 1000..3480
    exact = ImageReader("L", "values", (1000, 3550), channels=1)(counts)[..., 0]
    assert np.array_equal(exact, GREY)
    assert np.array_equal(ImageReader("L", "percentile", (0, 100), channels=1)(counts)[..., 0],
                          np.rint(GREY / 248 * 255).astype(np.uint8))  # fmt: skip
    two = np.stack([counts, counts * 3], axis=2)
    every = ImageReader("ALL", "percentile", (0, 100), channels=2)(two)
    assert np.abs(every[..., 0] - every[..., 1]).max() <= 1  # each channel by its own percentiles
    plain = ImageReader("L", "percentile", channels=1)(np.full((4, 4), 7, np.uint16))
    assert not plain.any()
    for pixels in (counts, counts.astype(np.float32), GREY.astype(np.int16), COLOURS / -255.0):
        with pytest.raises(ValueError, match=r"the array has .* pixels from .*INPUT.SCALING"):
            ImageReader()(pixels)
    with pytest.raises(ValueError, match="not finite"):
        ImageReader()(np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match=r"has 640 channels"):
        ImageReader()(np.zeros((3, 480, 640), np.uint8))


def test_a_dark_image_is_mentioned(caplog):
    ImageReader()(GREY.astype(np.uint16) * 16)
    assert "uses 0..3968 of 0..65535" in caplog.text and "INPUT.SCALING" in caplog.text


def test_stacks_are_refused_or_a_page_is_chosen(tmp_path):
    stack = np.stack([GREY, GREY // 2, GREY // 3, GREY // 4, GREY // 5])
    tifffile.imwrite(tmp_path / "stack.tif", stack)
    tifffile.imwrite(tmp_path / "z.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as file:
        for page in (GREY, GREY[:8]):
            file.write(page, contiguous=False)
    frames = [Image.fromarray(page) for page in stack]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    for name, pages in (("stack.tif", 5), ("z.tif", 5), ("sizes.tif", 2), ("a.gif", 5)):
        with pytest.raises(ValueError, match=rf"{name} holds {pages} images.*INPUT.PAGE"):
            ImageReader()(tmp_path / name)
        assert images.count_pages(tmp_path / name) == pages
        with pytest.raises(ValueError, match=r"INPUT.PAGE is 9"):
            ImageReader(page=9)(tmp_path / name)
    assert np.array_equal(ImageReader(page=2)(tmp_path / "z.tif")[..., 0], stack[2])
    assert ImageReader(page=1)(tmp_path / "sizes.tif").shape == (8, 40, 3)
    Image.fromarray(GREY).save(tmp_path / "one.png")
    assert images.count_pages(tmp_path / "one.png") == 1


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.bmp", "a.webp"])
def test_damaged_files_are_named(name, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    for spoilt in (data[: len(data) // 2], data[:10], b"", b"\0" * 200):
        (tmp_path / name).write_bytes(spoilt)
        with pytest.raises(ValueError, match=rf"{name} cannot be read.*Is it complete"):
            ImageReader()(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"gone.png"):
        ImageReader()(tmp_path / "gone.png")


def test_an_image_beyond_pillows_limit_is_named(tmp_path, monkeypatch):
    Image.fromarray(GREY).save(tmp_path / "slide.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"slide.png cannot be read .*DecompressionBomb"):
        ImageReader()(tmp_path / "slide.png")


def test_zeroed_bytes_of_a_jpeg(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    file = tmp_path / "a.jpg"
    for optimize in (False, True):
        for picture in (noise, np.zeros_like(noise), COLOURS):
            Image.fromarray(picture).save(file, optimize=optimize)
            assert jpeg_damage(file) == ""
    Image.fromarray(noise).save(file)
    data = file.read_bytes()
    middle, length = len(data) // 2, len(data)
    for start, end in ((middle, length), (middle, middle + length // 4)):
        file.write_bytes(data[:start] + bytes(end - start) + data[end:])
        assert jpeg_damage(file)


def test_hidden_files_are_no_images(tmp_path):
    names = ["a.jpg", "sub/b.TIF", "._a.jpg", "sub/._b.tif", "notes.txt"]
    assert [n for n in names if images.is_image(n)] == ["a.jpg", "sub/b.TIF"]
    for name in (*names, ".hidden/c.jpg", "__MACOSX/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [file.as_posix() for file in images.list_files(tmp_path)]
    assert found == ["a.jpg", "notes.txt", "sub/b.TIF"]


def test_wrong_readers():
    for kwargs, message in (
        ({"format": "HSV"}, "INPUT.FORMAT must be one of"),
        ({"scaling": "max"}, "INPUT.SCALING must be one of"),
        ({"scaling": "percentile", "scaling_range": (1, 200)}, "SCALING_RANGE"),
        ({"format": "L"}, "gives 1 channels, but MODEL.PIXEL_MEAN has 3"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageReader(**kwargs)


def test_what_the_network_refuses():
    good = torch.zeros(3, 8, 8, dtype=torch.uint8)
    check_pixels(good, 3, "x")
    check_pixels(good.float(), 3, "x")
    for image, message in (
        (torch.zeros(4, 8, 8), "expected 3 channels"),
        (torch.full((3, 8, 8), 40000.0), "values from 0 to 255"),
        (torch.full((3, 8, 8), 0.5), "multiply"),
        (torch.full((3, 8, 8), float("nan")), "values from 0 to 255"),
    ):
        with pytest.raises(ValueError, match=message):
            check_pixels(image, 3, "x")
