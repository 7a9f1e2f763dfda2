"""The pictures show what they say, on examples worked out by hand."""

import copy

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from amwc_d2 import visualization as draw
from amwc_d2.data.images import ImageReader

H, W = 32, 64
SKY, ROAD, PERSON, CAR = 4, 0, 6, 7  # contiguous ids of the toy set


@pytest.fixture(scope="module")
def metadata(toy_root):
    return MetadataCatalog.get("toy_panoptic_val")


@pytest.fixture
def prediction():
    """Sky above road, two cars side by side, and a void square in the upper left corner."""
    ids = torch.full((H, W), 1, dtype=torch.int32)
    ids[16:], ids[20:28, 10:30], ids[20:28, 30:50], ids[:8, :8] = 2, 3, 4, 0
    info = [
        {"id": 1, "category_id": SKY, "isthing": False, "area": 0},
        {"id": 2, "category_id": ROAD, "isthing": False, "area": 0},
        {"id": 3, "category_id": CAR, "isthing": True, "area": 160, "score": 0.75},
        {"id": 4, "category_id": CAR, "isthing": True, "area": 160, "score": 0.5},
    ]
    grid = ids[2::4, 2::4].numpy()
    return {
        "panoptic_seg": (ids, info),
        "amwc": {"segments": grid, "num_segments": 5, "objective": -1.5, "solver_seconds": 0.0},
    }


@pytest.fixture
def image():
    return np.full((H, W, 3), 100, np.uint8)


def test_overlay_colours(image, prediction, metadata):
    drawn = draw.draw_panoptic(image, *prediction["panoptic_seg"], metadata, labels=False)
    scale = draw.TILE_WIDTH // W
    assert drawn.shape == (H * scale, W * scale, 3) and drawn.dtype == np.uint8

    def pixel(y, x):
        return drawn[int((y + 0.5) * scale), int((x + 0.5) * scale)].astype(int)

    for y, x, category in ((10, 40, SKY), (18, 40, ROAD)):  # 0.6 of the colour, 0.4 of the image
        expected = 0.6 * np.array(metadata.stuff_colors[category]) + 0.4 * 100
        assert np.abs(pixel(y, x) - expected).max() <= 2
    assert np.abs(pixel(24, 20) - pixel(24, 40)).max() > 60  # cars apart from each other
    assert np.abs(pixel(3, 3) - 100).max() <= 1  # void shows the image


def test_drawing_changes_no_input_and_repeats_itself(image, prediction, metadata):
    before = copy.deepcopy((image, prediction))
    np.random.seed(0)
    first = draw.draw_panel(image, prediction, metadata)
    np.random.seed(1)
    assert np.array_equal(first, draw.draw_panel(image, prediction, metadata))
    assert np.array_equal(image, before[0])
    assert torch.equal(prediction["panoptic_seg"][0], before[1]["panoptic_seg"][0])
    assert prediction["panoptic_seg"][1] == before[1]["panoptic_seg"][1]
    assert np.array_equal(prediction["amwc"]["segments"], before[1]["amwc"]["segments"])


def test_labels_are_written_where_there_is_room(image, prediction, metadata):
    ids, info = prediction["panoptic_seg"]

    def changed(info):
        drawn = [
            draw.draw_panoptic(image, ids, info, metadata, labels=labels).astype(int)
            for labels in (True, False)
        ]
        return np.abs(drawn[0] - drawn[1]).any()

    assert changed(info[2:])
    scored, other = (
        draw.draw_panoptic(image, ids, [{**info[2], "score": score}], metadata)
        for score in (0.25, 0.75)
    )
    assert not np.array_equal(scored, other)
    ids[24:26, 5] = 9  # two pixels
    assert not changed([{"id": 9, "category_id": CAR}])


def test_cuts(image):
    segments = np.array([[0, 0, 1], [0, 2, 1]])
    drawn = draw.draw_cuts(image, segments)
    cell = draw.TILE_WIDTH // 3
    line = cell // 6
    assert drawn.shape == (2 * cell, 3 * cell, 3)
    red = (drawn == draw.CUT_COLOR).all(axis=2)
    expected = np.zeros_like(red)
    expected[:, 2 * cell - line : 2 * cell] = True  # 0|1 above, 2|1 below
    expected[cell:, cell - line : cell] = True  # 0|2
    expected[cell - line : cell, cell : 2 * cell] = True  # 0 over 2
    assert np.array_equal(red, expected)
    assert not (draw.draw_cuts(image, np.zeros((2, 3), int)) == draw.CUT_COLOR).all(axis=2).any()


def test_class_costs(metadata):
    costs = torch.full((10, 1, 2), 5.0)
    costs[PERSON, 0, 0] = -20.0  # certain
    costs[CAR, 0, 1], costs[SKY, 0, 1] = 1.0, 1.001  # nearly a tie
    certain, tie = draw.draw_class_costs(costs, metadata)[0].astype(float)
    car = np.array(metadata.stuff_colors[CAR])
    assert np.abs(certain - metadata.stuff_colors[PERSON]).max() <= 1
    assert np.abs(tie - (255 + 0.2 * (car - 255))).max() <= 1
    (only,) = draw.draw_class_costs(torch.zeros(1, 1, 1), metadata)[0].astype(float)
    assert np.abs(only - metadata.stuff_colors[0]).max() <= 1


def test_affinities():
    costs = torch.zeros(2, 2, 3, 3)
    costs[0, :, 0, 0], costs[0, :, 1, 1] = 9.0, -9.0
    costs[0, 0, 2, 2] = -99.0  # no such edge: its end lies outside
    costs[1] = 99.0  # no edge of distance 3 in a 3x3 grid
    near, far = draw.draw_affinities(costs, [1, 3])
    blue, red = near[0, 0].astype(int), near[1, 1].astype(int)
    assert blue[2] > blue[0] + 50 and red[0] > red[2] + 50
    neutral = far[0, 0].astype(int)
    assert neutral.min() > 240 and (near[2, 2] == neutral).all() and (far == neutral).all()


def test_panel_holds_its_tiles(toy_root, prediction, metadata):
    sample = DatasetCatalog.get("toy_panoptic_val")[0]
    image = ImageReader()(sample["file_name"])
    ids, info = prediction["panoptic_seg"]
    prediction["panoptic_seg"] = (ids.repeat_interleave(4, 0).repeat_interleave(4, 1), info)
    costs = torch.zeros(10, 8, 16), torch.ones(2, 2, 8, 16)
    row = draw.TITLE_HEIGHT + draw.TILE_WIDTH * image.shape[0] // image.shape[1]
    tile = draw.TILE_WIDTH + 8
    alone = draw.draw_panel(image, prediction, metadata)
    assert alone.shape == (2 * row, 2 * tile, 3)
    assert (alone[row:, tile:] == 255).all()  # three tiles: the fourth place is empty
    with_truth = draw.draw_panel(image, prediction, metadata, sample)
    assert with_truth.shape == (2 * row, 2 * tile, 3)
    assert not (with_truth[row:, tile:] == 255).all()
    truth = with_truth[draw.TITLE_HEIGHT : row, tile + 4 : -4]
    assert np.array_equal(truth, draw.draw_ground_truth(image, sample, metadata))
    assert draw.draw_panel(image, prediction, metadata, sample, costs, [1, 4]).shape[0] == 4 * row


@pytest.mark.parametrize("size", [(600, 8), (4, 3000)])
def test_panels_of_long_images_stay_small(metadata, size):
    image = np.zeros((*size, 3), np.uint8)
    cells = np.zeros([-(-side // 4) for side in size], int)
    solved = {"num_segments": 1, "objective": 0.0, "segments": cells}
    labels = torch.ones(size, dtype=torch.int32), [{"id": 1, "category_id": SKY}]
    panel = draw.draw_panel(image, {"panoptic_seg": labels, "amwc": solved}, metadata)
    assert panel.shape[0] * panel.shape[1] < 4e6
