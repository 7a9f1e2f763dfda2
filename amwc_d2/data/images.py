"""Images as they are: any depth, grey or many channels, TIFF, EXIF orientation, stacks.

One :class:`ImageReader`, made from the config, serves training, evaluation, the tools and arrays,
so that a network sees the same picture everywhere. What it cannot read rightly it refuses by name.

Shape shorthand: H, W an image's height and width; C its channels.
"""

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
import torch
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
FORMATS = ("RGB", "BGR", "L", "ALL")
SCALINGS = ("dtype", "percentile", "values")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, both byte orders
ORIENTATION = 274  # the tag, of EXIF and of TIFF alike
FEW_LEVELS = 64  # grey values below which an image counts as badly scaled


def is_image(name):
    """Tell whether a file name is that of an image: a usual extension, and not hidden.

    macOS leaves hidden ``._a.jpg`` files, which are no images, beside those it copies.
    """
    name = os.path.basename(name)
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def list_files(root):
    """Files under a folder, sorted, as paths relative to it; nothing hidden, nor ``__MACOSX``.

    Symbolic links are followed, except into a folder that holds them.
    """
    found = []
    _find_files(Path(root), Path(), (), found)
    return sorted(found)


def _find_files(root, relative, above, found):
    status = os.stat(root / relative)
    identity = status.st_dev, status.st_ino
    if identity in above:
        return
    with os.scandir(root / relative) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                _find_files(root, relative / entry.name, (*above, identity), found)
            else:
                found.append(relative / entry.name)


@dataclass(frozen=True)
class ImageReader:
    """Reads files and arrays as what a network takes: uint8 (H, W, C'), or float32 in 0..255.

    Attributes:
        format: "RGB" or "BGR" (C' = 3; grey is repeated, an alpha channel left out), "L" (C' = 1)
            or "ALL" (the file's own ``channels``, as float32).
        scaling: how pixel values become 0..255. "dtype": by the range of their type, 0..255 for
            uint8, 0..65535 for uint16, 0..1 for floats. "percentile": ``scaling_range`` holds two
            percentiles of each image (of each of its channels with "ALL"). "values":
            ``scaling_range`` holds the two values themselves.
        scaling_range: two numbers, the lower first; what lies outside is clipped.
        page: which page of a stack, from 0; -1: stacks are refused.
        channels: C' of "ALL".

    Raises:
        ValueError: an attribute is not one of those.
    """

    format: str = "RGB"
    scaling: str = "dtype"
    scaling_range: tuple[float, float] = (1.0, 99.8)
    page: int = -1
    channels: int = 3

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"INPUT.FORMAT must be one of {FORMATS}, got '{self.format}'.")
        if self.scaling not in SCALINGS:
            raise ValueError(f"INPUT.SCALING must be one of {SCALINGS}, got '{self.scaling}'.")
        low, high = self.scaling_range
        if not low < high or (self.scaling == "percentile" and not 0 <= low < high <= 100):
            raise ValueError(
                f"INPUT.SCALING_RANGE must be two rising numbers (percentiles lie in 0..100), got "
                f"{[low, high]}."
            )
        expected = {"L": 1, "ALL": self.channels}.get(self.format, 3)
        if self.channels != expected:
            raise ValueError(
                f"INPUT.FORMAT '{self.format}' gives {expected} channels, but MODEL.PIXEL_MEAN has "
                f"{self.channels} values. Give PIXEL_MEAN and PIXEL_STD one value a channel."
            )

    @classmethod
    def from_config(cls, cfg):
        """Read ``INPUT.{FORMAT,SCALING,SCALING_RANGE,PAGE}`` and the length of PIXEL_MEAN."""
        return cls(
            format=cfg.INPUT.FORMAT,
            scaling=cfg.INPUT.SCALING,
            scaling_range=tuple(cfg.INPUT.SCALING_RANGE),
            page=cfg.INPUT.PAGE,
            channels=len(cfg.MODEL.PIXEL_MEAN),
        )

    def __call__(self, image, source="the array"):
        """Read an image.

        Args:
            image (str, Path or ndarray): a file; or pixels (H, W) or (H, W, C), channels last and
                in the order RGB or RGBA.
            source (str): what errors call an array.

        Returns:
            ndarray: C-contiguous uint8 (H, W, C'); float32 with ``format`` "ALL".

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or a stack, its channels do not fit ``format``, or its
                values do not fit ``scaling``.
        """
        if isinstance(image, (str, os.PathLike)):
            source = os.fspath(image)
            pixels, has_alpha = read_pixels(source, None if self.page < 0 else self.page)
        else:
            pixels = np.asarray(image)
            if pixels.ndim == 2:
                pixels = pixels[..., None]
            if pixels.ndim != 3 or not pixels.size:
                raise ValueError(
                    f"{source} has shape {pixels.shape}; expected (H, W) or (H, W, C), channels "
                    "last."
                )
            has_alpha = pixels.shape[2] == 4
        if self.format == "ALL":
            if pixels.shape[2] != self.channels:
                raise ValueError(
                    f"{source} has {pixels.shape[2]} channels, but the network takes "
                    f"{self.channels}, one for each value of MODEL.PIXEL_MEAN (INPUT.FORMAT 'ALL')."
                )
            return np.ascontiguousarray(self._scale(pixels, source), np.float32)
        if has_alpha:
            pixels = pixels[..., :3]
        if pixels.shape[2] not in (1, 3):
            raise ValueError(
                f"{source} has {pixels.shape[2]} channels; INPUT.FORMAT '{self.format}' expects 1 "
                "(grey), 3 or 4 (RGB and alpha), channels last. For other channels set "
                "INPUT.FORMAT 'ALL' and give MODEL.PIXEL_MEAN and PIXEL_STD a value for each."
            )
        pixels = self._scale(pixels, source)
        if self.format == "L":
            grey = pixels.shape[2] == 1
            return pixels if grey else np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
        if pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        return np.ascontiguousarray(pixels if self.format == "RGB" else pixels[..., ::-1])

    def _scale(self, pixels, source):
        """Pixels of any type (H, W, C) as uint8."""
        kind = pixels.dtype.newbyteorder("=")
        if kind == np.uint8 and self.scaling == "dtype":
            return np.ascontiguousarray(pixels)
        if kind.kind not in "buif":
            raise ValueError(f"{source} has pixels of type {kind}; expected numbers.")
        if kind.kind == "f" and not np.isfinite(pixels).all():
            raise ValueError(
                f"{source} holds values that are not finite. Replace NaN and infinity, such as by "
                "the smallest value of the image."
            )
        if self.scaling == "percentile":
            axes = (0, 1) if self.format == "ALL" else None
            low, high = np.percentile(pixels, self.scaling_range, axis=axes)
        elif self.scaling == "values":
            low, high = self.scaling_range
        else:
            low, high = 0, self._range_of_type(pixels, source)
        scaled = (pixels.astype(np.float64) - low) * (255 / np.maximum(high - low, 1e-12))
        return np.ascontiguousarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))

    @staticmethod
    def _range_of_type(pixels, source):
        kind = pixels.dtype.newbyteorder("=")
        advice = (
            "Set INPUT.SCALING 'percentile', or 'values' with the two values of "
            "INPUT.SCALING_RANGE (tools/suggest_config.py finds them)."
        )
        least, most = pixels.min(), pixels.max()
        if kind == np.bool_:
            return 1
        if kind == np.uint16:
            if most < FEW_LEVELS * 257:
                log_first_n(
                    logging.WARNING,
                    f"{source} uses {least}..{most} of 0..65535, so that the network sees "
                    f"{most // 257 + 1} grey values. {advice}",
                    name=__name__,
                )
            return 65535
        if kind.kind == "f" and least >= 0 and most <= 1:
            return 1
        raise ValueError(
            f"{source} has {kind} pixels from {least:g} to {most:g}; INPUT.SCALING 'dtype' knows "
            f"uint8, uint16 and floats from 0 to 1. {advice}"
        )

    def to_rgb(self, picture):
        """What was read, as an RGB picture to draw on: uint8 (H, W, 3)."""
        if self.format == "BGR":
            return np.ascontiguousarray(picture[..., ::-1])
        if picture.shape[2] != 3:
            picture = np.repeat(picture[..., :1], 3, axis=2)
        return picture.astype(np.uint8)


# ---------------------------------------------------------------------------- files
class _StackError(ValueError):
    """The file holds several images, and which one is meant was not said."""


def read_pixels(path, page=None):
    """Read one image of a file with the type and the channels that the file has.

    Args:
        path (str or Path): anything that Pillow or tifffile reads, told by its content.
        page (int, optional): which image of a stack or an animation, from 0.

    Returns:
        (ndarray, bool): pixels (H, W, C), upright, RGB; and whether the last channel is alpha.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds several images and ``page`` does not say which.
    """
    path = os.fspath(path)
    try:
        with PathManager.open(path, "rb") as file:
            return _read(file, page)
    except _StackError as error:
        raise ValueError(f"{path} {error.args[0]}") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        if getattr(error, "errno", None):  # the file system speaks, and names the file
            raise
        raise ValueError(
            f"{path} cannot be read as an image ({type(error).__name__}: {error}). Is it complete? "
            "Copy or export it again."
        ) from error


def count_pages(path):
    """Count the images of a file: 1, or more for a stack or an animation.

    Raises:
        ValueError: it is no image.
    """
    try:
        read_pixels(path, page=-1)
    except ValueError as error:
        if isinstance(error.__cause__, _StackError):
            return error.__cause__.args[1]
        raise
    raise AssertionError("page -1 does not exist")


def image_size(path):
    """Read the size (height, width) of an image as it is displayed, from its header.

    Raises:
        ValueError: it is no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            return (width, height) if turned else (height, width)
    except Exception:
        return read_pixels(path, page=0)[0].shape[:2]


def _page_index(pages, page):
    if page is None and pages > 1:
        raise _StackError(
            f"holds {pages} images (a stack or an animation). Say which with INPUT.PAGE, counted "
            "from 0, or split the file.",
            pages,
        )
    if not 0 <= (page or 0) < pages:
        raise _StackError(f"holds {pages} image(s); INPUT.PAGE is {page}.", pages)
    return page or 0


def _read(file, page):
    start = file.read(26)
    file.seek(0)
    if start[:4] not in TIFF_STARTS:
        return _read_with_pillow(
            file, page, sixteen_bit=start[:4] == b"\x89PNG" and start[24] == 16
        )
    try:
        pixels = _read_tiff(file, page)
    except _StackError:
        raise
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        pixels = None
    if pixels is not None:
        return pixels
    file.seek(0)
    return _read_with_pillow(file, page)


def _read_with_pillow(file, page, sixteen_bit=False):
    image = Image.open(file)
    # Phones write pictures of several views (MPO), of which the first is the photo.
    image.seek(_page_index(1 if image.format == "MPO" else getattr(image, "n_frames", 1), page))
    image.load()
    orientation = image.getexif().get(ORIENTATION, 1)
    if sixteen_bit and image.mode in ("RGB", "RGBA"):  # of which Pillow keeps 8
        file.seek(0)
        data = np.frombuffer(file.read(), np.uint8)
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        pixels = cv2.cvtColor(
            pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        )
        return _turned(pixels, orientation), pixels.shape[2] == 4
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode in ("1", "LA", "La"):
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "RGBA", "I", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if image.mode.startswith("I") and pixels.min() >= 0 and pixels.max() < 65536:
        pixels = pixels.astype(np.uint16)  # Pillow widens 16 bits in some formats
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return _turned(pixels, orientation), image.mode == "RGBA"


def _read_tiff(file, page):
    """Pixels and has-alpha of a TIFF; None where Pillow knows better (CMYK, YCbCr and the like)."""
    with tifffile.TiffFile(file) as tif:
        if not len(tif.series):
            raise ValueError("no image in it")
        if len(tif.series) > 1:  # of different sizes, each a series
            index = _page_index(len(tif.series), page)
            series, page = tif.series[index], 0
        else:
            series = tif.series[0]
        frame = series.keyframe
        photometric = tifffile.PHOTOMETRIC
        if frame.photometric not in (
            photometric.MINISBLACK, photometric.MINISWHITE, photometric.RGB, photometric.PALETTE
        ):  # fmt: skip
            return None
        axes = series.axes
        if "Y" not in axes or "X" not in axes:
            raise ValueError(f"its axes are {axes}, expected Y and X among them")
        channel = next((axis for axis in "SC" if axis in axes), None)
        others = [i for i, axis in enumerate(axes) if axis not in ("Y", "X", channel)]
        index = _page_index(int(np.prod([series.shape[i] for i in others])), page)
        order = [*others, axes.index("Y"), axes.index("X")]
        order += [axes.index(channel)] if channel else []
        pixels = series.asarray().transpose(order)
        height, width = pixels.shape[len(others) : len(others) + 2]
        pixels = pixels.reshape(-1, height, width, pixels.shape[-1] if channel else 1)[index]
        if frame.photometric == photometric.PALETTE:
            pixels = frame.colormap.T[pixels[..., 0]]
        elif frame.photometric == photometric.MINISWHITE and pixels.dtype.kind in "bu":
            top = 1 if pixels.dtype.kind == "b" else np.iinfo(pixels.dtype).max
            pixels = (top - pixels).astype(pixels.dtype)
        orientation = frame.tags.get(ORIENTATION)
        has_alpha = channel == "S" and pixels.shape[2] == 4
        return _turned(pixels, int(orientation.value) if orientation else 1), has_alpha


def _turned(pixels, orientation):
    """Pixels (H, W, C) turned and mirrored as an EXIF orientation, 1..8, says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


# ---------------------------------------------------------------------------- checks
def check_pixels(image, channels, source):
    """Check what a network is given: an image tensor (C, H, W) with values 0..255.

    Images that an :class:`ImageReader` read pass; those that other code prepared may not.

    Raises:
        ValueError: other channels than ``channels``, or values of another range.
    """
    advice = "amwc_d2.Predictor reads files and arrays of any kind rightly."
    if image.ndim != 3 or image.shape[0] != channels:
        raise ValueError(
            f"{source}: expected {channels} channels (INPUT.FORMAT), as a tensor ({channels}, H, "
            f"W), got shape {tuple(image.shape)}. Leave an alpha channel out. {advice}"
        )
    if image.dtype != torch.uint8:
        least, most = image.min().item(), image.max().item()
        if not (least >= 0 and most <= 255):
            raise ValueError(
                f"{source}: expected values from 0 to 255, got {least:g} to {most:g}. {advice}"
            )
        if 0 < most <= 1 and image.dtype.is_floating_point and (image != image.round()).any():
            raise ValueError(
                f"{source}: expected values from 0 to 255, got {least:g} to {most:g}: multiply "
                f"images in 0..1 by 255. {advice}"
            )


def jpeg_damage(path):
    """What libjpeg complains of in a JPEG that decodes nevertheless, such as zeroed bytes; or "".

    Pillow keeps these complaints to itself, OpenCV's copy of libjpeg prints them.
    """
    with open(path, "rb") as file:
        if file.read(2) != b"\xff\xd8":
            return ""
    with tempfile.TemporaryFile() as printed:
        stderr = os.dup(2)
        try:
            os.dup2(printed.fileno(), 2)
            cv2.imread(os.fspath(path))
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        printed.seek(0)
        text = printed.read().decode(errors="replace").strip()
    return text.splitlines()[0] if text else ""
