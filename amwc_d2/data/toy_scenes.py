"""The scenes of the *toy* panoptic set: streets, drawn from a seed.

Each scene is painted from back to front: five kinds of stuff, then things sorted by depth. What
makes it hard is what makes streets hard: rows of touching cars and groups of people in almost one
colour, poles that cut an instance in two, uneven light and noise, things a few pixels wide, crowd
and void regions. Category ids are those of Cityscapes, so they have gaps.

Shapes: H, W are the image's height and width (128, 256); P the points of a polygon.
Object coordinates: x in [-0.5, 0.5] of the width, y in [0, 1] of the height, upwards from the
ground; images are RGB, float32 in 0..1 until they are written.
"""

import cv2
import numpy as np

HEIGHT, WIDTH = 128, 256
MIN_VISIBLE_AREA = 64  # pixels; smaller visible remains become void

CATEGORIES = [
    {"id": 7, "name": "road", "isthing": 0, "color": [128, 64, 128]},
    {"id": 8, "name": "sidewalk", "isthing": 0, "color": [244, 35, 232]},
    {"id": 11, "name": "building", "isthing": 0, "color": [70, 70, 70]},
    {"id": 21, "name": "vegetation", "isthing": 0, "color": [107, 142, 35]},
    {"id": 23, "name": "sky", "isthing": 0, "color": [70, 130, 180]},
    {"id": 17, "name": "pole", "isthing": 1, "color": [153, 153, 153]},
    {"id": 24, "name": "person", "isthing": 1, "color": [220, 20, 60]},
    {"id": 26, "name": "car", "isthing": 1, "color": [0, 0, 142]},
    {"id": 27, "name": "truck", "isthing": 1, "color": [0, 0, 70]},
    {"id": 33, "name": "bicycle", "isthing": 1, "color": [119, 11, 32]},
]
_IDS = {category["name"]: category["id"] for category in CATEGORIES}
_DARK = np.float32([0.10, 0.10, 0.12])


# ---------------------------------------------------------------------------- shapes
def _box(x0, y0, x1, y1):
    """Corners (4, 2) of an axis-aligned rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _ellipse(x, y, rx, ry, points=16):
    """Polygon (points, 2) around an ellipse."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _car(rng, colour):
    """Parts [(polygon (P, 2), colour (3,))] of a car seen from the side, or from an end."""
    glass = np.float32([0.25, 0.30, 0.35]) + rng.uniform(-0.05, 0.1)
    roof = np.array([(-0.32, 0.5), (-0.2, 1), (0.18, 1), (0.34, 0.5)])
    window = np.array([(-0.25, 0.55), (-0.17, 0.92), (0.14, 0.92), (0.26, 0.55)])
    body = np.array([(-0.5, 0.15), (-0.48, 0.55), (0.44, 0.58), (0.5, 0.45), (0.5, 0.15)])
    if rng.random() < 0.5:
        roof, window, body = (p * (-1, 1) for p in (roof, window, body))
    wheels = [(_ellipse(x, 0.17, 0.095, 0.2), _DARK) for x in (-0.29, 0.29)]
    return [(roof, colour), (window, glass), (body, colour), *wheels]


def _truck(rng, colour):
    cab = colour * 0.8 + rng.uniform(0, 0.1)
    side = 1 if rng.random() < 0.5 else -1
    parts = [
        (_box(-0.5, 0.14, 0.2, 1.0), colour),
        (_box(0.22, 0.14, 0.5, 0.72), cab),
        (_box(0.18, 0.14, 0.26, 0.4), cab),
        (_box(0.36, 0.45, 0.48, 0.68), np.float32([0.3, 0.35, 0.4])),
    ]
    parts += [(_ellipse(x, 0.11, 0.08, 0.12), _DARK) for x in (-0.35, -0.15, 0.35)]
    return [(polygon * (side, 1), part_colour) for polygon, part_colour in parts]


def _person(rng, colour):
    skin = np.float32([0.75, 0.58, 0.47]) * rng.uniform(0.5, 1.1)
    legs = np.float32([0.2, 0.2, 0.3]) + rng.uniform(-0.1, 0.15)
    stride = rng.uniform(0.05, 0.3)
    left = np.array([(-0.3, 0.5), (0.05, 0.5), (-0.1 - stride, 0), (-0.35 - stride, 0)])
    right = np.array([(-0.05, 0.5), (0.3, 0.5), (0.35 + stride, 0), (0.1 + stride, 0)])
    arms = np.array([(-0.5, 0.45), (-0.3, 0.82), (0.3, 0.82), (0.5, 0.45), (0.3, 0.5), (-0.3, 0.5)])
    torso = np.array([(-0.34, 0.45), (-0.32, 0.84), (0.32, 0.84), (0.34, 0.45)])
    head = _ellipse(0, 0.91, 0.26, 0.095)
    return [(left, legs), (right, legs), (arms, colour * 0.85), (torso, colour), (head, skin)]


def _bicycle(rng, colour):
    parts = []
    for x in (-0.29, 0.29):
        parts.append((_ellipse(x, 0.3, 0.21, 0.3), _DARK))
        parts.append((_ellipse(x, 0.3, 0.15, 0.22), np.float32([0.4, 0.4, 0.4])))
    frame = np.array([(-0.29, 0.25), (-0.1, 0.75), (0.2, 0.8), (0.29, 0.3), (0.2, 0.6), (0, 0.2)])
    parts.append((frame, colour))
    parts.append((_box(-0.2, 0.75, -0.02, 0.86), _DARK))
    parts.append((_box(0.14, 0.8, 0.26, 1.0), _DARK + rng.uniform(0, 0.1)))
    return parts


def _pole(rng, colour):
    parts = [(_box(-0.12, 0, 0.12, 1), colour)]
    if rng.random() < 0.7:  # a sign at the top
        sign = np.clip(rng.choice([[0.8, 0.2, 0.2], [0.2, 0.3, 0.7], [0.8, 0.8, 0.7]]), 0, 1)
        shape = _ellipse(0, 0.9, 0.5, 0.1) if rng.random() < 0.5 else _box(-0.5, 0.82, 0.5, 1)
        parts.append((shape, np.float32(sign) * rng.uniform(0.6, 1)))
    return parts


# name: (parts, width at the front of the scene in pixels, height / width)
_THINGS = {
    "car": (_car, 96, 0.42),
    "truck": (_truck, 110, 0.62),
    "person": (_person, 28, 2.5),
    "bicycle": (_bicycle, 58, 0.62),
    "pole": (_pole, 20, 5.5),
}


# ---------------------------------------------------------------------------- painting
def _texture(rng, strength, cells=(4, 16, 64)):
    """Multi-octave noise, float32 (H, W) around 1 with amplitude about ``strength``."""
    field = np.zeros((HEIGHT, WIDTH), np.float32)
    for octave, cell in enumerate(cells):
        coarse = rng.standard_normal((max(cell // 2, 2), cell)).astype(np.float32)
        fine = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
        field += fine * 0.7**octave
    return 1 + strength * field


class _Scene:
    """The image float32 (H, W, 3), its segment map int32 (H, W) and the segments' table."""

    def __init__(self, rng):
        self.rng = rng
        self.image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        self.ids = np.zeros((HEIGHT, WIDTH), np.int32)  # 0 = void
        self.grain = _texture(rng, 0.06)  # of every object's surface
        self.segments = {}  # id -> (category id, iscrowd)

    def new_segment(self, name, iscrowd=0):
        category_id = _IDS[name]
        segment = 1000 * category_id + sum(c == category_id for c, _ in self.segments.values())
        self.segments[segment] = (category_id, iscrowd)
        return segment

    def fill(self, polygon, colour, segment, texture):
        """Paint one textured polygon (P, 2), in pixels (x, y)."""
        window, points = self._window(polygon)
        mask = np.zeros(self.ids[window].shape, np.uint8)
        cv2.fillPoly(mask, [points], 1)
        inside = mask > 0
        self.image[window][inside] = texture[window][inside, None] * np.float32(colour)
        self.ids[window][inside] = segment

    def thing(self, name, x, ground, scale, colour, segment):
        """Paint one object standing on row ``ground``; ``scale`` 1 is the front of the scene."""
        draw_parts, width, aspect = _THINGS[name]
        width = width * scale * self.rng.uniform(0.9, 1.1)
        size = np.array([width, -width * aspect * self.rng.uniform(0.9, 1.1)])
        parts = draw_parts(self.rng, colour)
        polygons = [polygon * size + (x, ground) for polygon, _ in parts]
        self.darken(_ellipse(x, ground, width * 0.55, 1 + 2.5 * scale), 0.7)

        window, *points = self._window(*polygons)
        patch = np.zeros_like(self.image[window])
        mask = np.zeros(patch.shape[:2], np.uint8)
        for part, (_, part_colour) in zip(points, parts):
            cv2.fillPoly(patch, [part], np.clip(part_colour, 0, 1).tolist())
            cv2.fillPoly(mask, [part], 1)
        inside = mask > 0
        rim = inside & (cv2.erode(mask, np.ones((3, 3), np.uint8)) == 0)
        patch[rim] *= self.rng.uniform(0.55, 0.95)
        patch *= self.grain[window][..., None]
        self.image[window][inside] = patch[inside]
        self.ids[window][inside] = segment

    def darken(self, polygon, gain):
        """Multiply a soft-edged polygon (P, 2) by ``gain``."""
        window, points = self._window(polygon, margin=5)
        mask = np.zeros(self.ids[window].shape, np.float32)
        cv2.fillPoly(mask, [points], 1)
        mask = cv2.GaussianBlur(mask, (0, 0), 1.5)
        self.image[window] *= (1 - (1 - gain) * mask)[..., None]

    def _window(self, *polygons, margin=1):
        """Find the part of the image that holds the polygons: slices, and their points in it."""
        rounded = [np.round(polygon).astype(np.int32) for polygon in polygons]
        corners = np.concatenate(rounded)
        low = np.clip(corners.min(0) - margin, 0, (WIDTH - 1, HEIGHT - 1))
        high = np.clip(corners.max(0) + margin + 1, low + 1, (WIDTH, HEIGHT))
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        return window, *((points - low).astype(np.int32) for points in rounded)


def _paint_stuff(scene, horizon):
    rng = scene.rng
    grey = rng.uniform(0.3, 0.5)
    sky = np.float32([0.55, 0.68, 0.85]) * rng.uniform(0.7, 1.1) + rng.uniform(-0.1, 0.1)
    scene.fill(_box(0, 0, WIDTH, HEIGHT), sky, scene.new_segment("sky"), _texture(rng, 0.05))
    building = scene.new_segment("building")
    x = rng.uniform(-40, 60)
    while x < WIDTH:
        width, height = rng.uniform(30, 90), rng.uniform(0.3, 1.0) * horizon
        wall = rng.uniform(0.3, 0.6) + rng.uniform(-0.08, 0.08, 3)
        scene.fill(_box(x, horizon - height, x + width, horizon + 6), wall, building,
                   _texture(rng, 0.05))  # fmt: skip
        step, plain = rng.uniform(7, 13), np.ones((HEIGHT, WIDTH), np.float32)
        for window_x in np.arange(x + 3, x + width - 5, step):
            for window_y in np.arange(horizon - height + 4, horizon - 6, step):
                scene.fill(_box(window_x, window_y, window_x + 3, window_y + 5),
                           wall * rng.uniform(0.5, 1.2), building, plain)  # fmt: skip
        x += width + (rng.uniform(0, 60) if rng.random() < 0.4 else 0)
    pavement = np.float32([1, 0.97, 0.93]) * (grey + rng.uniform(0.04, 0.16))
    scene.fill(_box(0, horizon, WIDTH, HEIGHT), pavement, scene.new_segment("sidewalk"),
               _texture(rng, 0.06, (8, 64, 128)))  # fmt: skip
    vegetation = scene.new_segment("vegetation")
    leaves = _texture(rng, 0.16, (16, 64, 128))
    for _ in range(rng.integers(1, 5)):
        green = np.float32([0.25, 0.38, 0.16]) * rng.uniform(0.6, 1.3)
        x, y, size = rng.uniform(0, WIDTH), horizon + rng.uniform(-18, 6), rng.uniform(8, 22)
        for dx, dy, r in rng.uniform((-1, -0.8, 0.4), (1, 0.6, 0.9), (7, 3)) * size:
            scene.fill(_ellipse(x + dx, y + dy, r, r * 0.8), green, vegetation, leaves)
    vanish, left, right = WIDTH * rng.uniform((0.3, -0.3, 0.8), (0.7, 0.2, 1.3))
    road = np.array([(vanish - 20, horizon + 3), (vanish + 20, horizon + 3),
                     (right, HEIGHT), (left, HEIGHT)])  # fmt: skip
    segment = scene.new_segment("road")
    scene.fill(road, [grey] * 3, segment, _texture(rng, 0.05, (8, 64, 128)))
    for t in np.arange(rng.uniform(0, 0.2), 1, 0.25):  # lane marks
        near, far = ((1 - s) * road[:2].mean(0) + s * road[2:].mean(0) for s in (t, t + 0.1))
        mark = [near - (0.5 + t, 0), near + (0.5 + t, 0), far + (1 + t, 0), far - (1 + t, 0)]
        scene.fill(np.stack(mark), [grey + 0.3] * 3, segment, _texture(rng, 0.05))


def _place_things(rng, horizon):
    """Draw the things' list [(ground row, x, name, scale, colour)], from back to front."""
    depth = HEIGHT - horizon
    things = []

    def row(name, count, nearest, spacing, scatter):
        """A group on one row; neighbours touch or overlap and differ little in colour."""
        scale = rng.uniform(0.38, nearest)
        base = rng.uniform(0.2, 0.8) + rng.uniform(-0.15, 0.15, 3)
        x = rng.uniform(0, WIDTH * 0.8)
        for _ in range(count):
            ground = horizon + depth * scale * 0.95 + rng.uniform(-scatter, scatter)
            colour = np.clip(base + rng.normal(0, 0.04, 3), 0.08, 0.95).astype(np.float32)
            things.append((ground, x, name, scale, colour))
            x += _THINGS[name][1] * scale * rng.uniform(*spacing)

    for _ in range(rng.integers(1, 4)):
        row("car", rng.integers(1, 6), 0.95, (0.55, 1.05), 2)
    for _ in range(rng.integers(1, 4)):
        row("person", rng.integers(1, 6), 1.0, (0.5, 1.1), 3)
    for _ in range(rng.integers(0, 3)):
        row("bicycle", rng.integers(1, 4), 0.9, (0.5, 1.0), 2)
    if rng.random() < 0.5:
        row("truck", rng.integers(1, 3), 0.65, (0.8, 1.1), 2)
    for _ in range(rng.integers(0, 3)):
        row("pole", 1, 0.9, (1, 2), 0)
    cars = [thing for thing in things if thing[2] in ("car", "truck")]
    for k in rng.permutation(len(cars))[: rng.integers(0, 3)]:  # a pole right before a vehicle
        ground, x, _, scale, _ = cars[k]
        colour = np.float32([1, 1, 1]) * rng.uniform(0.2, 0.6)
        things.append((ground + 3, x + rng.uniform(-10, 10) * scale, "pole", scale, colour))
    return sorted(things, key=lambda thing: thing[0])


def draw_scene(rng):
    """Draw one street scene.

    Args:
        rng (numpy.random.Generator): the only source of chance.

    Returns:
        tuple: image uint8 (H, W, 3), RGB; panoptic ids int32 (H, W), 0 = void; and
        ``segments_info``, one ``{"id", "category_id", "iscrowd", "area", "bbox"}`` for every id in
        the map, with the visible area in pixels and ``bbox`` [x, y, width, height].
    """
    scene = _Scene(rng)
    horizon = HEIGHT * rng.uniform(0.3, 0.45)
    _paint_stuff(scene, horizon)
    if rng.random() < 0.3:  # far people whom nobody told apart
        crowd = scene.new_segment("person", iscrowd=1)
        x = rng.uniform(20, WIDTH - 60)
        for _ in range(rng.integers(6, 12)):
            colour = np.float32(rng.uniform(0.2, 0.7, 3))
            scene.thing("person", x, horizon + rng.uniform(12, 16), 0.25, colour, crowd)
            x += rng.uniform(2, 6)
    for ground, x, name, scale, colour in _place_things(rng, horizon):
        scene.thing(name, x, ground, scale, colour, scene.new_segment(name))
    if rng.random() < 0.5:  # something without a label
        x, y, size = rng.uniform(0, WIDTH), rng.uniform(horizon, HEIGHT), rng.uniform(4, 14)
        blob = _ellipse(x, y, size * 1.5, size, 9) + rng.normal(0, size * 0.2, (9, 2))
        scene.fill(blob, rng.uniform(0.1, 0.8, 3), 0, _texture(rng, 0.2, (32, 128)))
    if rng.random() < 0.25:  # the camera car's own bonnet
        rise = rng.uniform(4, 12)
        scene.fill(_ellipse(WIDTH / 2, HEIGHT + 2, WIDTH * 0.6, rise, 48), rng.uniform(0.1, 0.4, 3),
                   0, _texture(rng, 0.05))  # fmt: skip

    if rng.random() < 0.5:  # the shadow of something out of sight
        x, slope = rng.uniform(0, WIDTH), rng.uniform(-60, 60)
        edge = x + rng.choice([-300, 300])
        shadow = [(x, horizon), (x + slope, HEIGHT), (edge, HEIGHT), (edge, horizon)]
        scene.darken(np.array(shadow), rng.uniform(0.5, 0.8))
    image = scene.image * np.clip(_texture(rng, 0.15, (2, 3)), 0.5, 1.4)[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.7))
    image += rng.normal(0, rng.uniform(0.015, 0.04), image.shape)
    image = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    return image, scene.ids, _segments_info(scene)


def _segments_info(scene):
    """Turn remains below ``MIN_VISIBLE_AREA`` into void and describe the rest."""
    segments_info = []
    for segment, (category_id, iscrowd) in scene.segments.items():
        mask = scene.ids == segment
        area = int(mask.sum())
        if area < MIN_VISIBLE_AREA:
            scene.ids[mask] = 0
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y = int(columns[0]), int(rows[0])
        bbox = [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]
        segments_info.append({"id": segment, "category_id": category_id, "iscrowd": iscrowd,
                              "area": area, "bbox": bbox})  # fmt: skip
    return segments_info
