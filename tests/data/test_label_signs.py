"""Signs of shifted ids: none on histograms of correct files, the right one on each wrong kind."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segret_jax.data.class_table import UNKNOWN
from segret_jax.data.datasets import DATASETS, Layout, get_dataset, load_dataset
from segret_jax.data.shift_signs import quick_check, shift_signs
from segret_jax.data.sources import FolderSource
from segret_jax.errors import InputError

LAYOUTS = {
    f"{name}-{layout.name}": layout for name, spec in DATASETS.items() for layout in spec.layouts
}


def realistic(layout: Layout, *, skip: int = 0, void: float = 0.1) -> np.ndarray:
    """Counts as in the dataset's own files; long-tailed, without the last `skip` classes."""
    values = np.flatnonzero(layout.lookup < UNKNOWN)
    values = values[: len(values) - skip]
    counts = np.zeros(256, np.int64)
    counts[values] = 10_000_000 / np.arange(1, len(values) + 1) ** 1.5
    counts[layout.void[0]] += int(void * counts.sum())
    return counts


def reduced(counts: np.ndarray) -> np.ndarray:
    """What is stored after 0 -> 255, the rest minus 1, and 255 kept."""
    after = np.zeros_like(counts)
    after[:254] = counts[1:255]
    after[255] = counts[0] + counts[255]
    return after


def raised(counts: np.ndarray) -> np.ndarray:
    """What is stored where class 0 is 1 and void is 0."""
    after = np.zeros_like(counts)
    after[1:255] = counts[:254]
    after[0] = counts[255]
    return after


def signs(counts: np.ndarray, layout: Layout) -> list[tuple[bool, str]]:
    return [(sign.certain, sign.text) for sign in shift_signs(counts, layout)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_correct_files_give_no_sign(name):
    layout = LAYOUTS[name]
    for skip in (0, 1, 5):
        for void in (0.1, 0.0):
            assert signs(realistic(layout, skip=skip, void=void), layout) == []
    for first in (0, 1, 3):  # a few images, few classes
        few = np.zeros(256, np.int64)
        few[np.flatnonzero(layout.lookup < UNKNOWN)[first::4][:5]] = 1000
        few[layout.void[0]] = 100
        assert signs(few, layout) == []
    assert signs(np.zeros(256, np.int64), layout) == []


@pytest.mark.parametrize("name", ["ade20k-annotations", "coco_stuff10k-labelTrainIds"])
def test_a_zero_label_reduced_twice_is_a_certain_sign(name):
    layout = LAYOUTS[name]
    last = np.flatnonzero(layout.lookup < UNKNOWN)[-1]
    for counts in (reduced(realistic(layout)), reduced(reduced(realistic(layout)))):
        ((certain, text),) = signs(counts, layout)
        assert certain
        assert text.startswith("the files hold 255 (")
        assert f"never {last}, the last class: their zero was reduced" in text


def test_a_stored_255_alone_is_a_weak_sign():
    layout = LAYOUTS["ade20k-annotations"]
    counts = realistic(layout)
    counts[255] = 5  # all classes are there: nothing was shifted
    ((certain, text),) = signs(counts, layout)
    assert not certain
    assert "these pixels are ignored" in text
    counts[0] = counts[150] = 0  # void written as 255, no reduction
    assert [certain for certain, _ in signs(counts, layout)] == [False]


@pytest.mark.parametrize(
    ("name", "after"),
    [("camvid-annotations", 11), ("cityscapes-labelTrainIds", 19),
     ("coco_stuff164k-labelTrainIds", 171), ("coco_stuff164k-stuffthingmaps", 182)],
)  # fmt: skip
def test_a_zero_label_never_reduced_is_a_certain_sign(name, after):
    layout = LAYOUTS[name]
    found = signs(raised(realistic(layout)), layout)
    certain = [text for certain, text in found if certain]
    assert any(f"hold {after}, one more than the last class, and never 255" in t for t in certain)
    # 255 beside it says that there is one class more, not that all are shifted: an unknown id.
    more = realistic(layout)
    more[after] = 1000
    assert signs(more, layout) == []


def test_coco_ids_without_gaps_are_a_certain_sign():
    layout = LAYOUTS["coco_stuff164k-stuffthingmaps"]
    counts = realistic(LAYOUTS["coco_stuff164k-labelTrainIds"])
    ((certain, text),) = signs(counts, layout)
    assert certain
    assert "the files hold 11, 25, 28, 29, 44, 65, 67, 68 and " in text


def test_labels_without_any_class_are_a_certain_sign():
    counts = np.zeros(256, np.int64)
    counts[[0, 255]] = 10
    ((certain, text),) = signs(counts, LAYOUTS["cityscapes-labelIds"])
    assert certain
    assert text == "no pixel has a class: the files hold 0, 255 and nothing else"


def test_train_ids_named_label_ids_are_a_certain_sign():
    layout = LAYOUTS["cityscapes-labelIds"]
    ((certain, text),) = signs(realistic(LAYOUTS["cityscapes-labelTrainIds"]), layout)
    assert certain
    assert "the files hold 19 of the values 0 to 18" in text
    assert "not the raw ids of the layout labelIds" in text


def test_weak_signs_where_classes_start_at_zero():
    layout = LAYOUTS["camvid-annotations"]
    missing_first = realistic(layout, void=0)
    missing_first[0] = 0
    assert [certain for certain, _ in signs(missing_first, layout)] == [False]
    assert "count the classes from 1?" in signs(missing_first, layout)[0][1]
    ((certain, text),) = signs(reduced(realistic(layout)), layout)
    assert not certain
    assert "was the zero reduced once too often?" in text


def own_table(tmp_path: Path, raw_ids: list[int], ignore: list[int]) -> Layout:
    classes = [
        {"id": i, "name": f"c{i}", "color": "#010203", "raw_id": raw}
        for i, raw in enumerate(raw_ids)
    ]
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"classes": classes, "ignore": ignore}))
    return load_dataset(path).layouts[0]


def test_signs_of_a_table_of_ones_own(tmp_path):
    from_one = own_table(tmp_path, [1, 2, 3, 4], ignore=[0])
    for void, expected in ((0, []), (255, [True])):
        counts = np.zeros(256, np.int64)
        counts[[1, 2, 3, 4] if void == 0 else [0, 1, 2, 3]] = 100
        counts[void] = 10
        assert [certain for certain, _ in signs(counts, from_one)] == expected
    both = own_table(tmp_path, [1, 2, 3, 4], ignore=[0, 255])  # said so: nothing to warn of
    assert signs(counts, both) == []
    spread = own_table(tmp_path, [0, 50, 100, 200], ignore=[255])
    counts = np.zeros(256, np.int64)
    counts[[0, 255]] = 100
    assert signs(counts, spread) == []


def test_quick_check_names_the_evidence_and_the_remedy(tmp_path):
    for split, first in (("training", 0), ("validation", 1)):
        for i in range(5):
            for kind, folder, suffix in (("RGB", "images", "jpg"), ("L", "annotations", "png")):
                path = tmp_path / folder / split / f"{i}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new(kind, (8, 8), (first + i) if kind == "L" else None).save(path)
    spec = get_dataset("ade20k")
    good = FolderSource(spec, tmp_path, "validation")
    quick_check(good)
    source = FolderSource(spec, tmp_path, "training")
    quick_check(source)
    Image.new("L", (8, 8), 255).save(source.label_path(3))
    source.label_path(1).write_bytes(b"")  # named by whoever reads it, not here
    with pytest.raises(InputError) as caught:
        quick_check(source)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("labels of ade20k, training (5 files read): the files hold 255 (25")
    assert "`segret data check`" in message
    quick_check(source, samples=2)  # of the first and the last file
