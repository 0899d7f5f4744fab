"""metrics.json with its per_image.npz: whole, together, and what is said where they are not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segret_jax.errors import InputError
from segret_jax.evaluation import results
from segret_jax.evaluation.pixel_counts import PixelCounts
from segret_jax.evaluation.protocol import identify

SETTINGS = {"flip": False}
PROTOCOL = {"id": identify(SETTINGS), "must_agree": SETTINGS, "may_differ": {"jax": "1"}}
AREAS = PixelCounts(*np.arange(18).reshape(3, 3, 2))
NAMES = ("town/b", "town/c", "country/a")


def write(folder: Path, **scores: Any) -> Path:
    scores = {"classes": {"a": {}}} | scores
    return results.write(folder, scores, protocol=PROTOCOL, names=NAMES, images=AREAS)


def test_read_restores_what_write_wrote_sorted_by_name(tmp_path: Path):
    file = write(tmp_path / "new" / "folder", mIoU=0.5, classes={"a": {}})
    assert file == tmp_path / "new" / "folder" / "metrics.json"
    assert sorted(path.name for path in file.parent.iterdir()) == ["metrics.json", "per_image.npz"]
    found = results.read(file)
    assert (found.content["mIoU"], found.protocol) == (0.5, PROTOCOL)
    assert found.names == ["country/a", "town/b", "town/c"]
    for mine, stored in (
        (AREAS.intersection, found.images.intersection),
        (AREAS.label, found.images.label),
        (AREAS.pred, found.images.pred),
    ):
        np.testing.assert_array_equal(stored, mine[[2, 0, 1]])


def test_different_numbers_of_names_and_counts_are_rejected(tmp_path: Path):
    with pytest.raises(ValueError, match="2 names of 3 images"):
        results.write(tmp_path, {}, protocol=PROTOCOL, names=NAMES[:2], images=AREAS)


def test_a_write_that_fails_leaves_the_older_result_whole(tmp_path: Path):
    file = write(tmp_path, mIoU=0.5)
    (tmp_path / "per_image.npz.partial").mkdir()
    with pytest.raises(InputError, match=r"cannot write \S+per_image\.npz: Is a directory"):
        write(tmp_path, mIoU=0.6)
    assert results.read(file).content["mIoU"] == 0.5


def cut(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8")[:-9], encoding="utf-8")


def older(file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    del content["protocol"], content["per_image"]
    file.write_text(json.dumps(content), encoding="utf-8")


def changed(**protocol: Any) -> Callable[[Path], None]:
    """Return what puts other values into the protocol."""

    def change(file: Path) -> None:
        content = json.loads(file.read_text(encoding="utf-8"))
        content["protocol"] |= protocol
        file.write_text(json.dumps(content), encoding="utf-8")

    return change


def no_dict(file: Path) -> None:
    file.write_text("[1, 2]", encoding="utf-8")


def binary(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")


def parted(file: Path) -> None:
    (file.parent / "per_image.npz").unlink()


def mixed_up(file: Path) -> None:
    other = results.write(
        file.parent / "other",
        {"classes": {}},
        protocol=PROTOCOL,
        names=NAMES,
        images=AREAS[np.array([2, 1, 0])],
    )
    (other.parent / "per_image.npz").replace(file.parent / "per_image.npz")


def removed(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (removed, r"metrics\.json cannot be read \(No such file or directory\); evaluate first"),
        (cut, r"metrics\.json is no JSON \(.+\); give a metrics\.json, or evaluate again"),
        (binary, r"metrics\.json is no JSON"),
        (older, r"metrics\.json does not say by which protocol it was made; evaluate again with"),
        (no_dict, r"metrics\.json does not say by which protocol"),
        (
            changed(must_agree={"flip": True}),
            r"metrics\.json: the protocol.s id is not",
        ),
        (changed(must_agree=[1]), r"metrics\.json does not say by which protocol"),
        (changed(may_differ=None), r"metrics\.json does not say by which protocol"),
        (parted, r"per_image\.npz cannot be read \(.+\); it belongs to metrics\.json: put it"),
        (mixed_up, r"per_image\.npz does not belong to metrics\.json, its hash differs; evaluate"),
    ],
)
def test_unreadable_result_is_named_with_a_remedy_in_one_line(tmp_path: Path, harm, message):
    file = write(tmp_path, mIoU=0.5)
    harm(file)
    with pytest.raises(InputError, match=f"^{tmp_path}/{message}") as caught:
        results.read(file)
    assert "\n" not in str(caught.value)
