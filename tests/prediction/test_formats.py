"""Each format, read by an independent reader."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image
from pycocotools.coco import COCO
from shapely.geometry import shape

from segret_jax.data.class_table import ClassTable, load_class_table
from segret_jax.data.decode import decode_image, decode_label
from segret_jax.errors import InputError
from segret_jax.prediction.outputs import FILES, is_own_output
from segret_jax.prediction.segmentation import Segmentation
from segret_jax.visualize.pictures import colorize, overlay

CAMVID, CITYSCAPES = load_class_table("camvid"), load_class_table("cityscapes")
HEIGHT, WIDTH = 30, 40


class Scores:
    """Probabilities that vary from pixel to pixel."""

    def __init__(self, num_classes: int):
        logits = np.random.default_rng(0).normal(0, 3, (HEIGHT, WIDTH, num_classes))
        self.exact = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        self.label_map = self.exact.argmax(-1).astype(np.uint8)
        self.calls: list[str] = []

    def confidence(self) -> list[np.ndarray]:
        self.calls.append("confidence")
        return [self.exact.max(-1).astype(np.float16)]

    def probabilities(self) -> list[np.ndarray]:
        self.calls.append("probabilities")
        return [self.exact.astype(np.float16)]


def segmentation(table: ClassTable = CAMVID, *, file: Path | None = None) -> Segmentation:
    scores = Scores(table.num_classes)
    image = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return Segmentation(image, table, scores.label_map, scores, file=file)


def saved(result: Segmentation, format: str, folder: Path, **options: Any) -> Path:
    (file,) = result.save(folder, format, **options)
    assert is_own_output(file)
    return file


def test_a_label_map_holds_ids_and_shows_colors(tmp_path):
    result = segmentation()
    file = saved(result, "label", tmp_path)
    np.testing.assert_array_equal(np.asarray(Image.open(file)), result.label_map, strict=True)
    shown = np.asarray(Image.open(file).convert("RGB"))
    np.testing.assert_array_equal(shown, CAMVID.colors[result.label_map])


def test_a_color_picture_has_the_colors_of_the_classes(tmp_path):
    result = segmentation()
    found = np.asarray(Image.open(saved(result, "color", tmp_path)))
    np.testing.assert_array_equal(found, CAMVID.colors[result.label_map], strict=True)


def test_an_overlay_is_the_image_under_the_colors_above_a_legend(tmp_path):
    result = segmentation()
    found = decode_image(saved(result, "overlay", tmp_path))
    expected = overlay(result.image, result.label_map, CAMVID)
    np.testing.assert_array_equal(found[:HEIGHT], expected)
    assert len(found) > HEIGHT
    bare = result.overlay(legend=False, opacity=1.0)
    np.testing.assert_array_equal(np.asarray(bare), colorize(result.label_map, CAMVID))


def test_the_confidence_is_the_palette_index_and_grows_lighter(tmp_path):
    result = segmentation()
    file = saved(result, "confidence", tmp_path)
    index = decode_label(file)
    np.testing.assert_allclose(index / 255, result.confidence, atol=0.5 / 255 + 1e-3)
    gray = np.asarray(Image.open(file).convert("L"), int)
    order = np.argsort(index.ravel(), kind="stable")
    assert (np.diff(gray.ravel()[order]) >= -2).all()  # a perceptual scale, rounded
    assert len(np.unique(index)) > 50


def test_probabilities_are_read_by_numpy(tmp_path):
    result = segmentation()
    with np.load(saved(result, "probabilities", tmp_path)) as arrays:
        np.testing.assert_array_equal(arrays["probabilities"], result.probabilities, strict=True)
        assert tuple(arrays["classes"]) == CAMVID.class_names
        np.testing.assert_array_equal(arrays["probabilities"].argmax(-1), result.label_map)


def test_json_has_pixels_share_and_confidence_of_each_class(tmp_path):
    result = segmentation()
    result.label_map[:] = np.where(result.label_map == 3, 4, result.label_map)  # none of class 3
    content = json.loads(saved(result, "json", tmp_path).read_text())
    assert (content["width"], content["height"]) == (WIDTH, HEIGHT)
    assert [one["id"] for one in content["classes"]] == [i for i in range(11) if i != 3]
    for one in content["classes"]:
        mask = result.label_map == one["id"]
        assert one["name"] == CAMVID.class_names[one["id"]]
        assert one["pixels"] == mask.sum()
        assert one["share"] == pytest.approx(mask.mean(), abs=1e-6)
        expected = result.confidence[mask].astype(float).mean()
        assert one["mean_confidence"] == pytest.approx(expected, abs=1e-4)


def test_polygons_are_geojson_that_covers_each_class(tmp_path):
    result = segmentation()
    content = json.loads(saved(result, "polygons", tmp_path).read_text())
    assert content["type"] == "FeatureCollection"
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for class_id, name in enumerate(CAMVID.class_names):
        features = [f for f in content["features"] if f["properties"]["class_id"] == class_id]
        assert {f["properties"]["class_name"] for f in features} == {name}
        polygons = [shape(feature["geometry"]) for feature in features]
        assert all(polygon.is_valid for polygon in polygons)
        inside = shapely.contains_xy(shapely.union_all(polygons), columns, rows)
        np.testing.assert_array_equal(inside, result.label_map == class_id)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_is_read_by_pycocotools(tmp_path, capsys):
    photograph = tmp_path / "x.jpg"
    result = segmentation(file=photograph)
    coco = COCO(saved(result, "coco", tmp_path / "out"))
    assert coco.loadImgs(1)[0] == {
        "id": 1, "file_name": "x.jpg", "width": WIDTH, "height": HEIGHT
    }  # fmt: skip
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == [*CAMVID.class_names]
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=1))
    assert {one["category_id"] for one in annotations} == {*np.unique(result.label_map).tolist()}
    for one in annotations:
        mask = result.label_map == one["category_id"]
        np.testing.assert_array_equal(coco.annToMask(one), mask)
        assert one["area"] == mask.sum()
        left, top, width, height = one["bbox"]
        assert mask[top : top + height, left : left + width].sum() == mask.sum()
        rows, columns = np.nonzero(mask)
        assert [width, height] == [np.ptp(columns) + 1, np.ptp(rows) + 1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_cityscapes_is_scored_by_the_official_script(tmp_path, monkeypatch, capsys):
    stem = "frankfurt_000000_000294"
    result = segmentation(CITYSCAPES, file=tmp_path / f"{stem}_leftImg8bit.png")
    result.save(tmp_path / "out", "overlay,label,cityscapes")
    truth = tmp_path / f"{stem}_gtFine_labelIds.png"
    raw_ids = np.array([raws[0] for raws in CITYSCAPES.raw_ids], np.uint8)
    expected = raw_ids[result.label_map]
    expected[:10] = 7  # road
    Image.fromarray(expected).save(truth)

    monkeypatch.setattr(sys, "argv", ["evaluate"])
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling

    official: Any = evalPixelLevelSemanticLabeling

    monkeypatch.setattr(official.args, "predictionPath", str(tmp_path / "out" / "cityscapes"))
    monkeypatch.setattr(official.args, "predictionWalk", None)
    monkeypatch.setattr(official.args, "evalInstLevelScore", False)
    monkeypatch.setattr(official.args, "JSONOutput", False)
    found = official.getPrediction(official.args, str(truth))
    scores = official.evaluateImgLists([found], [str(truth)], official.args)["classScores"]
    for class_id, name in enumerate(CITYSCAPES.class_names):
        pred, label = result.label_map == class_id, expected == raw_ids[class_id]
        assert scores[name] == pytest.approx((pred & label).sum() / (pred | label).sum())


def test_cityscapes_is_refused_for_other_classes(tmp_path):
    with pytest.raises(InputError, match="19 classes of Cityscapes; this model has 11 of camvid"):
        segmentation().save(tmp_path, "cityscapes")


def test_saving_computes_only_what_the_formats_need(tmp_path):
    result = segmentation()
    result.save(tmp_path)
    assert result._scores.calls == []
    result.save(tmp_path, "json,confidence")
    assert result._scores.calls == ["confidence"]


def test_saving_names_files_after_the_image_and_replaces_no_other(tmp_path):
    result = segmentation(file=tmp_path / "a.b.jpg")
    formats = [name for name in FILES if name != "cityscapes"]
    assert [file.name for file in result.save(tmp_path, formats)] == [
        "a.b_overlay.png", "a.b_label.png", "a.b_color.png", "a.b_confidence.png",
        "a.b_probabilities.npz", "a.b.json", "a.b.geojson", "a.b_coco.json",
    ]  # fmt: skip
    result.save(tmp_path, formats)
    with pytest.raises(InputError, match=r"was made from another picture, a\.b\.jpg"):
        segmentation().save(tmp_path, name="a.b")
    assert [file.name for file in segmentation().save(tmp_path, "json")] == ["image.json"]
    with pytest.raises(InputError, match=r"cannot write .*: (Not a directory|File exists)"):
        result.save(tmp_path / "a.b.json", "json")


def test_a_notebook_shows_a_reduced_overlay():
    result = segmentation()
    content = result._repr_png_()
    assert content.startswith(b"\x89PNG")
    shares = np.bincount(result.label_map.ravel()) / result.label_map.size
    largest = CAMVID.class_names[shares.argmax()]
    assert repr(result).startswith(f"Segmentation(40x30: {largest} {shares.max():.0%}, ")
