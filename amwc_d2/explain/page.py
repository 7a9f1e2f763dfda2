"""The page: one self-contained HTML file about one image, which works without a server or network.

Shape shorthand in this module: H, W the image's pixels.
"""

import base64
import html
import json
from io import BytesIO
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from amwc_d2.explain.clicks import FORMAT

PARTS = Path(__file__).parent / "html"


def page_html(explanation):
    """Write the page of an ``Explanation``, as text."""
    height, width = explanation.pixel_pieces.shape
    graph = explanation.graph.to_dict()
    for name in ("class_costs", "attraction", "repulsion"):  # micronats: half the size
        graph[name] = np.round(graph[name], 6).tolist()
    data = {
        "format": FORMAT,
        "file_name": explanation.file_name,
        "image_id": explanation.image_id,
        "height": height,
        "width": width,
        "classes": explanation.classes,
        "thing_area": explanation.thing_area,
        "stuff_area": explanation.stuff_area,
        "graph": graph,
        "runs": run_lengths(explanation.pixel_pieces),
        "image": data_url(explanation.image, "JPEG", quality=88),
        "maps": [{"title": title, "src": data_url(m, "PNG")} for title, m in explanation.maps],
        "truth": None,
    }
    if explanation.truth is not None:
        ids, segments = explanation.truth
        data["truth"] = {"runs": run_lengths(ids), "segments": segments}
    parts = {path.name.replace(".", "_"): path.read_text() for path in PARTS.iterdir()}
    return Template(parts.pop("page_html")).substitute(
        parts,
        title=html.escape(Path(explanation.file_name).name),
        # so that "</script>" in a name does not end the script
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )


def run_lengths(labels):
    """Labels (H, W) as ``[label, length, label, length, ...]``, row after row."""
    flat = np.asarray(labels).ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    lengths = np.diff(starts, append=flat.size)
    return np.stack([flat[starts], lengths], axis=1).ravel().tolist()


def data_url(picture, kind, **options):
    """A picture, uint8 (height, width, 3), as a ``data:`` URL; kind is "JPEG" or "PNG"."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
