"""Clicks: corrections as points of the image, in a JSON file that the page saves.

    {"format": "amwc_d2 clicks 1", "file_name": ..., "height": H, "width": W,
     "class_offsets": [K numbers], "distance_offsets": [D numbers],
     "clicks": [{"tool": "merge", "points": [[x, y], [x, y]]}, ...]}

The tools are those of ``corrections``; "class" and "carve" have a "class". Points are pixels of the
image, so that clicks outlive the pieces: they can be applied to another model's region graph, or
be constraints of the multiway cut itself.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FORMAT = "amwc_d2 clicks 1"


@dataclass(frozen=True)
class Clicks:
    """Corrections of one image.

    Attributes:
        file_name: of the image.
        height, width: of the image.
        clicks: list of dicts ``tool``, ``points`` [[x, y], ...] and, for some, ``class``.
        class_offsets, distance_offsets: added to the costs; see ``RegionGraph.costs``.
    """

    file_name: str
    height: int
    width: int
    clicks: list
    class_offsets: list
    distance_offsets: list

    def actions(self, pixel_pieces):
        """The clicks as actions on pieces.

        Args:
            pixel_pieces: int (H, W), the piece of every pixel.

        Raises:
            ValueError: the map has another size than the clicks' image.
        """
        if pixel_pieces.shape != (self.height, self.width):
            raise ValueError(
                f"the clicks of {self.file_name} are for {self.width} x {self.height} pixels, but "
                f"the image has {pixel_pieces.shape[1]} x {pixel_pieces.shape[0]}"
            )
        return [
            {**click, "pieces": [int(pixel_pieces[y, x]) for x, y in click["points"]]}
            for click in self.clicks
        ]


def read_clicks(path):
    """Read and check a file of clicks.

    Returns:
        Clicks

    Raises:
        ValueError: it is not such a file; the message says what was expected.
    """
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(given, dict) or given.get("format") != FORMAT:
        found = given.get("format") if isinstance(given, dict) else type(given).__name__
        raise ValueError(
            f"{path}: expected clicks saved by the page, format '{FORMAT}', got {found!r}"
        )
    given.pop("format")
    try:
        made = Clicks(**given)
    except TypeError as error:
        raise ValueError(f"{path}: a part is missing or not known: {error}") from error
    for number, click in enumerate(made.clicks, 1):
        _check(click, made, f"{path}: click {number}")
    return made


def _check(click, clicks, where):
    needs = {"tool", "points"} | ({"class"} if click.get("tool") in ("class", "carve") else set())
    if set(click) != needs:
        raise ValueError(f"{where}: expected {sorted(needs)}, got {sorted(click)}")
    points = np.array(click["points"])
    if points.ndim != 2 or points.shape[1] != 2 or points.dtype.kind != "i":
        raise ValueError(f"{where}: expected points [[x, y], ...], got {click['points']}")
    if not ((points >= 0) & (points < [clicks.width, clicks.height])).all():
        raise ValueError(
            f"{where}: points {click['points']} are not all in the image of "
            f"{clicks.width} x {clicks.height} pixels"
        )
