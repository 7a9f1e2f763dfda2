"""The tools of the page in napari (``pip install 'amwc_d2[napari]'``), with the same functions.

    import napari
    from amwc_d2.explain.napari import correct_in_napari

    corrector = correct_in_napari(explanation, napari.Viewer())
    napari.run()
    explanation.save_labels("corrected", corrector.clicks)

Keys, with the layer "segments" chosen: m merges (two clicks), s splits (a click in each object),
n makes a new object, i inspects; u undoes.
"""

from dataclasses import replace

import numpy as np

from amwc_d2.explain.clicks import Clicks

TOOLS = {"i": "inspect", "m": "merge", "s": "split", "n": "carve"}


class Corrector:
    """Turns clicks on an image into corrections; knows nothing of a viewer.

    Attributes:
        explanation: an ``Explanation``.
        clicks: the corrections so far, a ``Clicks``.
        tool: one of ``TOOLS``' values.
        category: contiguous class of new objects.
        message: what happened last.
    """

    def __init__(self, explanation):
        graph, (height, width) = explanation.graph, explanation.pixel_pieces.shape
        offsets = [0.0] * len(graph.partitionable), [0.0] * len(graph.distances)
        self.explanation = explanation
        self.clicks = Clicks(explanation.file_name, height, width, [], *offsets)
        self.category = int(np.argmax(graph.partitionable))
        self.choose("inspect")

    def choose(self, tool):
        """Choose a tool; points of an action that is not complete are forgotten."""
        self.tool, self.pending, self.message = tool, [], tool

    def click(self, x, y):
        """Click a pixel; returns whether the segmentation changed."""
        if self.tool == "inspect":
            ids, info = self.explanation.panoptic(self.clicks)
            names = [c["name"] for c in self.explanation.classes]
            found = [s for s in info if s["id"] == ids[y, x]]
            self.message = f"{names[found[0]['category_id']]} {ids[y, x]}" if found else "void"
            return False
        self.pending.append([int(x), int(y)])
        if self.tool == "carve":
            new = {"tool": "carve", "points": self.pending, "class": self.category}
        else:
            new = {"tool": self.tool, "points": self.pending}
        if self.tool != "carve" and len(self.pending) < 2:
            self.message = f"{self.tool}: one more point"
            return False
        # A split goes on: a third point replaces it by a split in three.
        before = self.clicks.clicks[:-1] if len(self.pending) > 2 else self.clicks.clicks
        candidate = replace(self.clicks, clicks=[*before, {**new, "points": list(self.pending)}])
        try:
            self.explanation.panoptic(candidate)
        except ValueError as error:
            self.pending.pop()
            self.message = str(error)
            return False
        self.clicks, self.message = candidate, f"{self.tool}: done"
        if self.tool != "split":
            self.pending = []
        return True

    def undo(self):
        """Take the last correction back."""
        self.choose(self.tool)
        self.clicks = replace(self.clicks, clicks=self.clicks.clicks[:-1])


def correct_in_napari(explanation, viewer):
    """Show an explanation in a viewer and let clicks correct it.

    Args:
        explanation: an ``Explanation``.
        viewer: a ``napari.Viewer``.

    Returns:
        Corrector
    """
    corrector = Corrector(explanation)
    viewer.add_image(explanation.image, name="image", rgb=True)
    layer = viewer.add_labels(explanation.panoptic()[0], name="segments", opacity=0.5)

    def show():
        layer.data = explanation.panoptic(corrector.clicks)[0]
        viewer.status = corrector.message

    def on_click(layer, event):
        y, x = np.floor(np.asarray(layer.world_to_data(event.position)) + 0.5).astype(int)[-2:]
        height, width = explanation.pixel_pieces.shape
        if 0 <= y < height and 0 <= x < width:
            corrector.click(x, y)
            show()

    layer.mouse_drag_callbacks.append(on_click)
    for key, tool in TOOLS.items():
        layer.bind_key(
            key, lambda layer, tool=tool: (corrector.choose(tool), show()), overwrite=True
        )
    layer.bind_key("u", lambda layer: (corrector.undo(), show()), overwrite=True)
    return corrector
