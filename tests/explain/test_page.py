"""The explanation of an image, and its page in a headless browser without a network."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from amwc_d2 import model_zoo
from amwc_d2.data.panoptic_format import (
    load_panoptic_json,
    read_panoptic_png,
)
from amwc_d2.engine.predictor import Predictor
from amwc_d2.explain import Clicks, explain, read_clicks
from amwc_d2.explain.explanation import judge_truth

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
# The sandbox needs rights that containers do not have; the others keep it from calling home.
BROWSER_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def predictor():
    return Predictor(model_zoo.get_config("toy_amwc_r18_e2e"))


@pytest.fixture(scope="module")
def toy(predictor, toy_root):
    """The explanation of a toy scene, with its ground truth."""
    from detectron2.data import DatasetCatalog

    sample = DatasetCatalog.get("toy_panoptic_val")[1]
    truth = read_panoptic_png(sample["pan_seg_file_name"]), sample["segments_info"]
    return explain(predictor, sample["file_name"], image_id=sample["image_id"], truth=truth)


def same_partition(a, b):
    return len(np.unique(a)) == len(np.unique(b)) == len(np.unique(np.stack([a, b]), axis=1).T)


def flat(*maps):
    return [np.asarray(m).ravel() for m in maps]


def test_without_clicks_it_is_the_models_segmentation(toy, predictor):
    panoptic, segments_info = predictor(toy.image)["panoptic_seg"]
    ids, info = toy.panoptic()
    assert same_partition(*flat(ids, panoptic))
    assert np.array_equal(ids == 0, panoptic.numpy() == 0)
    counts = [
        Counter((s["category_id"], s["isthing"], s["area"]) for s in i)
        for i in (info, segments_info)
    ]
    assert counts[0] == counts[1]


def click_two_things_together(toy):
    """The click that merges the two largest things, and their points."""
    ids, info = toy.panoptic()
    things = sorted((s for s in info if s["isthing"]), key=lambda s: -s["area"])[:2]
    points = [np.argwhere(ids == s["id"])[s["area"] // 2, ::-1].tolist() for s in things]
    return {"tool": "merge", "points": points}


def clicks_of(toy, *clicks):
    height, width = toy.pixel_pieces.shape
    zeros = [0.0] * len(toy.classes), [0.0] * len(toy.graph.distances)
    return Clicks(toy.file_name, height, width, list(clicks), *zeros)


def test_clicks_correct_the_segmentation(toy):
    click = click_two_things_together(toy)
    before, info = toy.panoptic()
    after, corrected = toy.panoptic(clicks_of(toy, click))
    first, second = ((x, y) for x, y in click["points"])
    assert before[first[::-1]] != before[second[::-1]]
    assert after[first[::-1]] == after[second[::-1]]
    assert len(corrected) == len(info) - 1


def test_solving_again_exactly_keeps_the_clicks_and_what_is_far(toy):
    click = click_two_things_together(toy)
    clicks = clicks_of(toy, {**click, "tool": "split"}, click_a_new_thing(toy))
    pieces, _ = toy.panoptic(clicks)
    exact, info = toy.panoptic(clicks, exact=True)
    assert np.mean(pieces != exact) < 0.05
    (x, y), (u, v) = click["points"]
    assert exact[y, x] != exact[v, u]
    (x, y) = clicks.clicks[1]["points"][0]
    assert (exact == exact[y, x])[toy.pixel_pieces == toy.pixel_pieces[y, x]].mean() > 0.8
    assert {s["id"] for s in info} == set(np.unique(exact)) - {0}
    nothing = toy.panoptic(clicks_of(toy), exact=True)[0]
    np.testing.assert_array_equal(nothing, toy.panoptic()[0])


def click_a_new_thing(toy):
    """The click that makes the largest piece in stuff, but for the first, a thing."""
    stuff = ~toy.graph.partitionable[toy.graph.classes]
    piece = np.argsort(np.where(stuff, toy.graph.areas, 0))[-2]
    y, x = np.argwhere(toy.pixel_pieces == piece)[0].tolist()
    return {"tool": "carve", "points": [[x, y]], "class": 5}


def test_segments_that_were_clicked_are_kept_however_small(toy):
    piece = int(np.bincount(toy.pixel_pieces[toy.pixel_pieces > 0]).argmax())
    y, x = np.argwhere(toy.pixel_pieces == piece)[0].tolist()
    thing = next(k for k, c in enumerate(toy.classes) if c["isthing"])
    click = {"tool": "carve", "points": [[x, y]], "class": thing}
    limits = toy.thing_area
    toy.thing_area = 10**6
    try:
        ids, info = toy.panoptic(clicks_of(toy, click))
    finally:
        toy.thing_area = limits
    assert [s["category_id"] for s in info if s["isthing"]] == [thing]
    assert np.array_equal(ids == ids[y, x], toy.pixel_pieces == piece)


def test_judging_the_truth():
    ids = np.repeat([[1, 2, 3, 4, 5]], 8, axis=0).repeat(8, axis=1)
    truth = [{"id": i, "category_id": 1} for i in (1, 2, 3, 4)] + [{"id": 5, "category_id": 0}]
    predicted = ids.copy()
    predicted[:, 8:16] = 1  # 1 and 2 in one
    predicted[:4, 16:24] = 6  # 3 in two
    predicted[:, 24:32] = 5  # 4 in the background
    info = [{"id": i, "category_id": 1} for i in (1, 3, 6)] + [{"id": 5, "category_id": 0}]
    states = [s["state"] for s in judge_truth(ids, truth, predicted, info, {1})]
    assert states == ["fused", "fused", "split", "missed", "missed"]
    truth[0]["iscrowd"] = 1
    assert [s["id"] for s in judge_truth(ids, truth, predicted, info, {1})] == [2, 3, 4, 5]


def test_the_page_holds_all_it_needs(toy, tmp_path):
    name, toy.file_name = toy.file_name, "<script><b>.png"
    try:
        text = toy.to_html()
        shown = toy._repr_html_()
    finally:
        toy.file_name = name
    assert len(text) < 500_000
    assert "<b>" not in text and "&lt;script&gt;&lt;b&gt;.png" in text
    assert "http:" not in text and "https:" not in text
    assert shown.startswith("<iframe srcdoc=")


def test_saved_labels_are_a_dataset(toy, tmp_path):
    file = toy.save_labels(tmp_path, clicks_of(toy, click_two_things_together(toy)))
    Image.fromarray(toy.image).save(tmp_path / "000002.jpg")
    (sample,) = load_panoptic_json(file, tmp_path, tmp_path)
    ids = read_panoptic_png(sample["pan_seg_file_name"])
    assert {s["id"] for s in sample["segments_info"]} == set(np.unique(ids)) - {0}
    for segment in sample["segments_info"]:
        y, x = np.nonzero(ids == segment["id"])
        assert segment["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]


def test_clicks_are_checked(toy, tmp_path):
    file = tmp_path / "clicks.json"
    good = {
        "format": "amwc_d2 clicks 1", "file_name": "a.png", "height": 4, "width": 5,
        "class_offsets": [0, 0], "distance_offsets": [0],
        "clicks": [{"tool": "merge", "points": [[4, 3], [0, 0]]}],
    }  # fmt: skip
    file.write_text(json.dumps(good))
    clicks = read_clicks(file)
    assert clicks.actions(np.arange(20).reshape(4, 5))[0]["pieces"] == [19, 0]
    with pytest.raises(ValueError, match="are for 5 x 4 pixels, but the image has 256 x 128"):
        toy.panoptic(clicks)
    for change, message in (
        ({"format": "coco"}, "expected clicks saved by the page"),
        ({"clicks": [{"tool": "merge", "points": [[5, 3]]}]}, "are not all in the image of 5 x 4"),
        ({"clicks": [{"points": [[1, 1]]}]}, r"click 1: expected \['points', 'tool'\], got"),
        ({"colour": 1}, "missing or not known"),
    ):
        file.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=message):
            read_clicks(file)
    file.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_clicks(file)


def test_the_tools_of_napari_without_a_viewer(toy):
    from amwc_d2.explain.napari import Corrector

    corrector = Corrector(toy)
    (x, y), (u, v) = click_two_things_together(toy)["points"]
    assert not corrector.click(x, y) and corrector.message.split()[-1].isdigit()
    corrector.choose("merge")
    assert not corrector.click(x, y) and corrector.click(u, v)
    assert [c["tool"] for c in corrector.clicks.clicks] == ["merge"]
    corrector.choose("split")
    assert not corrector.click(x, y) and not corrector.click(u, v)
    assert "it undoes action 1 (merge)" in corrector.message
    corrector.undo()
    assert not corrector.click(x, y) and corrector.click(u, v)
    ids, _ = toy.panoptic(corrector.clicks)
    assert ids[y, x] != ids[v, u]
    corrector.choose("carve")
    assert corrector.click(x, y)
    assert [c["tool"] for c in corrector.clicks.clicks] == ["split", "carve"]
    assert corrector.clicks.clicks[1]["class"] == corrector.category


def test_napari_shows_what_clicks_do(toy):
    components = pytest.importorskip("napari.components", reason="needs napari")
    from amwc_d2.explain.napari import correct_in_napari

    viewer = components.ViewerModel()
    corrector = correct_in_napari(toy, viewer)
    corrector.choose("merge")
    layer = viewer.layers["segments"]
    before = len(np.unique(layer.data))
    for x, y in click_two_things_together(toy)["points"]:
        for callback in layer.mouse_drag_callbacks:
            callback(layer, type("Event", (), {"position": (y, x)}))
    assert len(np.unique(layer.data)) == before - 1


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    if not BROWSER:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=BROWSER_OPTIONS)
        yield started
        started.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """A function that opens an explanation's page; no error and no request may follow."""
    contexts, wrong = [], []

    def open_page(explanation):
        file = explanation.save(tmp_path / "page.html")
        context = browser.new_context(offline=True, viewport={"width": 1400, "height": 1000})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: wrong.append(m.text))
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on(
            "request",
            lambda r: r.url.split(":")[0] in ("data", "blob", "file") or wrong.append(r.url),
        )
        page.goto(f"file://{file}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def click_pixel(page, x, y):
    page.evaluate(f"click([{x}, {y}])")


def save(page, button, folder):
    with page.expect_download() as download:
        page.click(f"text={button}")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


@pytest.mark.slow
def test_corrections_in_the_browser_are_those_of_python(toy, open_page, tmp_path):
    page = open_page(toy)
    click = click_two_things_together(toy)
    page.check("input[value=merge]")
    for x, y in click["points"]:
        click_pixel(page, x, y)
    assert page.text_content("#status") == "Merged."
    page.check("input[value=split]")
    for x, y in click["points"]:
        click_pixel(page, x, y)
    assert "it undoes action 1 (merge)" in page.text_content("#status")
    page.click("#undo")
    assert page.text_content("#status") == "Undone: merge."
    assert page.is_disabled("#undo")
    for x, y in click["points"]:
        click_pixel(page, x, y)
    assert page.text_content("#status").startswith("Split into 2")

    clicks = read_clicks(save(page, "Clicks (JSON)", tmp_path))
    assert clicks.clicks == [{"tool": "split", "points": click["points"]}]
    ids, _ = toy.panoptic(clicks)
    np.testing.assert_array_equal(read_panoptic_png(save(page, "Labels (PNG)", tmp_path)), ids)
    saved = json.loads(save(page, "Labels (COCO-panoptic JSON)", tmp_path).read_text())
    assert saved == json.loads(toy.save_labels(tmp_path, clicks).read_text())

    page.click("#undo")
    page.set_input_files("#load-clicks", tmp_path / f"{toy.file_name.split('.')[0]}.clicks.json")
    page.wait_for_function("document.getElementById('status').textContent.includes('loaded')")
    assert ", 1 correction" in page.text_content("#summary")


@pytest.mark.slow
def test_looking_around_in_the_browser(toy, open_page):
    page = open_page(toy)
    count = int(page.text_content("#summary").split()[0])
    assert count == toy.graph.segments.max() + 1
    page.click("#review li:first-child button")
    assert "Easiest change" in page.text_content("#detail")
    assert page.locator("#detail table").count() == 2
    page.keyboard.press("c")
    assert page.is_checked("input[value=chain]")
    for x, y in click_two_things_together(toy)["points"]:
        click_pixel(page, x, y)
    assert "are two segments" in page.text_content("#detail")
    assert page.locator("#detail tr.weakest").count() == 1
    page.click("#what-if summary")
    slider = page.locator("#offsets input[data-kind=distances]").first
    slider.fill("-3")
    assert page.text_content("#status") == "Solved again."
    assert int(page.text_content("#summary").split()[0]) >= count
    page.click("#reset-offsets")
    assert int(page.text_content("#summary").split()[0]) == count
    for option in page.locator("#base option").all():
        page.select_option("#base", label=option.text_content())
    page.check("#truth")
    page.check("#pieces")
    page.select_option("#colours", "certainty")


@pytest.mark.slow
def test_all_by_keyboard(toy, open_page):
    page = open_page(toy)
    page.focus("#stage")
    page.keyboard.press("Enter")
    assert "Class costs" in page.text_content("#detail")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    step = round(256 / 64)
    assert page.text_content("#status").endswith(f"at {128 + step}, 65")
    page.keyboard.press(".")
    assert page.locator("#review [aria-current=true]").count() == 1
    page.locator("#detail table button").first.focus()
    page.keyboard.press("Enter")
    assert page.text_content("#status") == "Merged."
    page.keyboard.press("Control+z")
    assert page.text_content("#status") == "Undone: merge."


@pytest.mark.slow
def test_at_200_percent_zoom_nothing_is_cut_off(toy, open_page):
    page = open_page(toy)
    page.set_viewport_size({"width": 700, "height": 500})  # 1400 x 1000 at 200 %
    page.click("#review li:first-child button")
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
