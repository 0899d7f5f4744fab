"""The classes that a file names win over a guess by their number; the user's win over both."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segret_jax.checkpoint import model as checkpoints
from segret_jax.cli.convert import main
from segret_jax.cli.eval import main as evaluate
from segret_jax.convert.classes import choose_classes, class_notes
from segret_jax.convert.file_classes import FileClasses, find_classes, find_labels
from segret_jax.convert.recognize import TorchModel
from segret_jax.convert.records import Record
from segret_jax.convert.tensors import read_tensors
from segret_jax.data.class_table import load_class_table, parse_class_table
from segret_jax.errors import InputError
from tests.convert.models import CLASSIFIER, random_tensors, write_pth
from tests.convert.test_tensors import DATA
from tests.settings import segret

ELEVEN = [f"part {letter}" for letter in "abcdefghijk"]
PALETTE = [[i, 2 * i, 3 * i] for i in range(11)]


def found(content: dict[str, Any]) -> FileClasses:
    classes = find_classes(content)
    assert classes is not None
    return classes


def family(count: int, **model: Any) -> TorchModel:
    return TorchModel(model=segret(**model), num_classes=count, prefix=True)


@pytest.mark.usefixtures("mini")
def test_eleven_names_of_a_file_are_not_taken_for_camvids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = {"CLASSES": ELEVEN, "PALETTE": PALETTE}
    file = write_pth(tmp_path / "a.pth", random_tensors(11), meta=meta)
    main([str(file), str(tmp_path / "a")])
    table = checkpoints.load_table(tmp_path / "a")
    assert table.class_names == tuple(ELEVEN)
    np.testing.assert_array_equal(table.colors, PALETTE)
    assert checkpoints.load_config(tmp_path / "a").data.dataset == "synthetic"  # none is named
    printed = capsys.readouterr().out
    assert "segret_tiny, 11 classes (own)" in printed
    assert "classes as the file names them (meta.CLASSES)" in printed
    # What the user says wins, and the difference is told.
    main([str(file), str(tmp_path / "b.npz"), "--config.data.dataset=camvid"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "segret_tiny, 11 classes (camvid)" in printed
    assert "NOTE: the file names other classes (meta.CLASSES) than data.dataset: class 0 is " in (
        printed
    )


@pytest.mark.usefixtures("mini")
def test_names_that_do_not_fit_the_outputs_are_refused_with_a_remedy(tmp_path: Path) -> None:
    file = write_pth(tmp_path / "a.pth", random_tensors(19), meta={"CLASSES": ELEVEN})
    with pytest.raises(InputError) as caught:
        main([str(file), str(tmp_path / "b.npz")])
    assert str(caught.value) == (
        f"{file}: names 11 classes (meta.CLASSES), but its model has 19 outputs; say which they "
        "are: --config.data.dataset=NAME or FILE.json"
    )
    main([str(file), str(tmp_path / "b.npz"), "--config.data.dataset=cityscapes"])


@pytest.mark.parametrize(
    ("dataset", "table"),
    [("ade20k", "ade20k"), ("cityscapes", "cityscapes"), ("coco_stuff10k", "coco_stuff"),
     ("camvid", "camvid")],
)  # fmt: skip
def test_names_of_a_known_dataset_in_its_order_are_that_dataset(dataset: str, table: str) -> None:
    names = load_class_table(table).class_names
    # mmsegmentation writes "bed ", others "SignSymbol" or "traffic_light".
    for spelled in (names, [n.title().replace(" ", "") for n in names], [n + " " for n in names]):
        named = found({"meta": {"dataset_meta": {"classes": spelled}}})
        name, chosen = choose_classes(family(len(names)), "synthetic", named, given=False)
        assert (name, chosen.class_names) == (dataset, names)
        assert class_notes(chosen, named, given=True) == []
    turned = found({"meta": {"CLASSES": names[::-1]}})
    name, chosen = choose_classes(family(len(names)), "synthetic", turned, given=False)
    assert (name, chosen.class_names) == ("synthetic", names[::-1])


def test_outputs_beyond_the_classes_of_a_known_dataset_stay() -> None:
    cityscapes = load_class_table("cityscapes")
    named = found({"meta": {"CLASSES": cityscapes.class_names}})
    note = (
        "NOTE: 150 outputs, but cityscapes has 19 classes: output 19 and all after it stay, and a "
        "pixel predicted as one of them counts as wrong"
    )
    for given, names, notes in (
        (False, named, ["classes as the file names them (meta.CLASSES)", note]),
        (True, named, [note]),
        (True, None, [note]),
    ):
        dataset, table = choose_classes(family(150), "cityscapes", names, given=given)
        assert (dataset, table.num_classes) == ("cityscapes", 150)
        assert table.class_names[:19] == cityscapes.class_names
        assert table.class_names[19:] == tuple(f"class {i}" for i in range(19, 150))
        np.testing.assert_array_equal(table.colors[:19], cityscapes.colors)
        assert class_notes(table, names, given=given) == notes
        assert table.extends(cityscapes)
        assert not cityscapes.extends(table)
        again = parse_class_table(table.to_dict(), "", default_name="")
        assert again.extends(cityscapes)
    assert not load_class_table("ade20k").extends(cityscapes)
    own = replace(cityscapes, class_names=cityscapes.class_names[:18], raw_ids=((1,),) * 18)
    assert not cityscapes.extends(own), "output 18 is a class with labels"


@pytest.mark.usefixtures("mini")
def test_a_model_with_further_outputs_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = random_tensors(12)  # the synthetic scenes have 8 classes
    last = "decode_head.linear_pred"
    for predicted, score in ((10, "mIoU 0.00  mAcc 0.00  aAcc 0.00"), (0, "mAcc 12.50")):
        tensors[f"{last}.weight"] = np.zeros_like(tensors[f"{last}.weight"])
        tensors[f"{last}.bias"] = np.eye(12, dtype=np.float32)[predicted]
        file = write_pth(tmp_path / f"{predicted}.pth", tensors)
        main([str(file), str(tmp_path / f"{predicted}"), "--config.data.dataset=synthetic"])
        capsys.readouterr()
        options = ["--config.data.synthetic_size=32,32", "--config.data.synthetic_validation=2"]
        evaluate(["--checkpoint", str(tmp_path / f"{predicted}"), *options])
        assert score in capsys.readouterr().out


def test_guessed_classes_are_reported_as_a_guess() -> None:
    _, table = choose_classes(family(11), "synthetic", given=False)
    (note,) = class_notes(table, None, given=False)
    assert note.startswith("NOTE: the file does not name its classes, and 11 are taken for those")
    assert class_notes(table, None, given=True) == []
    _, table = choose_classes(family(7), "synthetic", given=False)
    assert class_notes(table, None, given=False) == []


def test_other_lengths_and_names_given_twice() -> None:
    named = found({"meta": {"CLASSES": ELEVEN[:3]}})
    _, table = choose_classes(family(19), "cityscapes", named, given=True)
    (note,) = class_notes(table, named, given=True)
    assert note.endswith("than data.dataset: class 0 is 'part a' there, 'road' here")
    named = found({"meta": {"CLASSES": table.class_names[:3]}})
    (note,) = class_notes(table, named, given=True)
    assert note.endswith("than data.dataset: class 3 is 'missing' there, 'wall' here")
    twice = found({"classes": ["a", "b", "a"]})
    with pytest.raises(InputError, match=r"names class 'a' twice \(classes\); say which they are"):
        choose_classes(family(3), "synthetic", twice, given=False)
    many = found({"classes": [str(i) for i in range(1000)]})
    assert (len(many.names), many.count) == (254, 1000)
    with pytest.raises(InputError, match=r"names 1000 classes \(classes\), but its model has 254"):
        choose_classes(family(254), "synthetic", many, given=False)


def test_a_classifier_keeps_its_generic_classes() -> None:
    named = found({"classes": ["crane"] * 1000})  # ImageNet has two of them
    model = family(1000, **CLASSIFIER)
    assert choose_classes(model, "synthetic", named, given=False)[1].name == "imagenet"


def test_where_a_file_names_its_classes() -> None:
    real = read_tensors(DATA / "mmengine.pth").classes
    assert real is not None
    assert (real.names, real.source) == (("sky", "land"), "meta.dataset_meta.classes")
    np.testing.assert_array_equal(real.colors, [[1, 2, 3], [4, 5, 6]])
    for content, source in (
        ({"meta": {"CLASSES": ("a", "b")}}, "meta.CLASSES"),
        ({"meta": {"dataset_meta": {"CLASSES": ["a", "b"]}}}, "meta.dataset_meta.CLASSES"),
        ({"class_names": ["a", "b"]}, "class_names"),
        ({"meta": {"CLASSES": None}, "classes": ["a", "b"]}, "classes"),
    ):
        assert found(content).source == source
        assert found(content).names == ("a", "b")
    for content in ({}, {"meta": "x"}, {"classes": 2}, {"classes": ["a", 1]}, {"classes": "ab"}):
        assert find_classes(content) is None
    assert found({"classes": ["\x1b[2J", "道路"]}).names == (r"\x1b[2J", "道路")


@pytest.mark.parametrize(
    ("palette", "colors"),
    [
        ([[1, 2, 3], (4, 5, 6)], [[1, 2, 3], [4, 5, 6]]),
        (Record("numpy.ndarray", (), (1, (2, 3), Record("numpy.dtype", ("i4",)), False,
                                      np.arange(6, dtype="i4").tobytes())), [[0, 1, 2], [3, 4, 5]]),
        (Record("numpy.ndarray", (), (1, (3, 2), Record("numpy.dtype", ("i4",)), False,
                                      np.arange(6, dtype="i4").tobytes())), None),
        ([[1, 2, 3]], None),
        ([[1, 2, 3], [4, 5, 256]], None),
        ([[1, 2, 3], [4, 5]], None),
        (None, None),
    ],
)  # fmt: skip
def test_a_palette_that_fits_is_taken(palette: object, colors: object) -> None:
    named = found({"meta": {"CLASSES": ["a", "b"], "PALETTE": palette}})
    _, table = choose_classes(family(2), "synthetic", named, given=False)
    if colors is None:
        assert named.colors is None
        assert len({color.tobytes() for color in table.colors}) == 2
    else:
        np.testing.assert_array_equal(table.colors, colors)


def test_labels_of_a_config_of_hugging_face() -> None:
    named = find_labels({"id2label": {"1": "b", "0": "a"}})
    assert named is not None
    assert (named.names, named.source) == (("a", "b"), "id2label of config.json")
    for labels in (
        {"0": "LABEL_0", "1": "LABEL_1"}, {"0": "a", "2": "b"}, {"0": 1}, {}, ["a"], None,
    ):  # fmt: skip
        assert find_labels(json.loads(json.dumps({"id2label": labels}))) is None
