"""The label doctor: silent on valid data, and each fault named with its file and remedy."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segret_jax.cli import data_check
from segret_jax.data.datasets import get_dataset
from segret_jax.data.sources import FolderSource, Record, RecordSource
from segret_jax.doctor import check as doctor
from segret_jax.doctor.examine import CHUNK, difference_hash, examine_all
from segret_jax.doctor.findings import Diagnosis, class_weights
from segret_jax.errors import InputError

CAMVID = get_dataset("camvid")
SIZE = (36, 48)


def photograph(seed: int) -> np.ndarray:
    """Blocks of random colors: no two look alike."""
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return blocks.repeat(4, axis=0).repeat(4, axis=1)


def label_map(seed: int) -> np.ndarray:
    """All 11 classes and 255."""
    values = np.random.default_rng(seed).permutation([*range(11), 255]).astype(np.uint8)
    return values.reshape(3, 4).repeat(12, axis=0).repeat(12, axis=1)


@dataclass
class Folder:
    root: Path

    def image(self, i: int, split: str = "training") -> Path:
        return self.root / "images" / split / f"{i}.jpg"

    def label(self, i: int, split: str = "training") -> Path:
        return self.root / "annotations" / split / f"{i}.png"

    def write_label(self, i: int, pixels: np.ndarray, split: str = "training") -> None:
        Image.fromarray(pixels).save(self.label(i, split))

    def check(self, **options: object) -> Diagnosis:
        return doctor.check(CAMVID, self.root, workers=1, **options)

    def findings(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Return {split and message: (severity, locations)}."""
        return {f"{f.split}: {f.message}": (f.severity, f.locations) for f in self.check().findings}

    def only(self, severity: str, pattern: str) -> tuple[str, ...]:
        """Assert that there is one finding, with this severity and text; return its locations."""
        ((message, (found, locations)),) = self.findings().items()
        assert re.search(pattern, message), message
        assert found == severity
        return locations


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Six training and three validation pairs without a fault."""
    folder = Folder(tmp_path / "data")
    for split, count, seed in (("training", 6, 0), ("validation", 3, 100)):
        for i in range(count):
            for path in (folder.image(i, split), folder.label(i, split)):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photograph(seed + i)).save(folder.image(i, split))
            folder.write_label(i, label_map(seed + i), split)
    return folder


def run(folder: Folder, report: Path, *arguments: str) -> int:
    try:
        data_check.main([str(folder.root), "--dataset=camvid", f"--report={report}", *arguments])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_sound_data_gives_no_finding(folder):
    diagnosis = folder.check()
    assert diagnosis.findings == []
    assert diagnosis.verdict() == "valid"
    scan = diagnosis.scans["training"]
    assert scan.pixels.tolist() == [6 * 144] * 11
    assert scan.images.tolist() == [6] * 11
    assert scan.fraction(255) == pytest.approx(1 / 12)


# Pairs


def test_files_without_a_partner(folder):
    folder.label(1).unlink()
    folder.image(2).unlink()
    findings = folder.findings()
    ((severity, locations),) = [f for m, f in findings.items() if "1 image without label in" in m]
    assert (severity, locations) == ("error", ("1",))
    ((severity, locations),) = [f for m, f in findings.items() if "1 label without image in" in m]
    assert (severity, locations) == ("error", ("2",))
    assert len(findings) == 2  # the other pairs were examined, and are valid
    assert len(folder.check().scans["training"].examined) == 4


def test_images_of_another_suffix_are_named(tmp_path):
    folder = Folder(tmp_path)
    for path in (folder.image(0), folder.label(0)):
        path.parent.mkdir(parents=True)
    for i, path in enumerate((folder.image(0), folder.image(1).with_suffix(".png"))):
        Image.fromarray(photograph(i)).save(path)
        folder.write_label(i, label_map(i))
    hint = "1 .png file there (1.png), but only *.jpg is read: convert or rename to *.jpg"
    (found,) = [f for f in folder.check(split="training").findings if f.severity == "error"]
    assert "1 label without image in" in found.message
    assert hint in found.message
    with pytest.raises(InputError, match=re.escape(hint)):
        FolderSource(CAMVID, tmp_path, "training")
    folder.image(1).with_suffix(".png").unlink()
    assert "only *" not in folder.check(split="training").findings[0].message


def test_an_empty_split_is_an_error_and_one_that_is_not_there_a_note(folder):
    for path in folder.label(0, "validation").parent.iterdir():
        path.unlink()
    folder.only("error", "validation: not checked: no .*png in")
    folder.label(0, "validation").parent.rmdir()
    for path in folder.image(0, "validation").parent.iterdir():
        path.unlink()
    folder.image(0, "validation").parent.rmdir()
    folder.only(
        "note",
        "validation: not checked: there is no folder .*images/validation; camvid needs .*\nget ",
    )
    assert folder.check(split="training").findings == []
    with pytest.raises(InputError, match="there is no folder"):
        folder.check(split="validation")
    with pytest.raises(InputError, match="there is no folder /nowhere"):
        doctor.check(CAMVID, "/nowhere")


# Files


@pytest.mark.parametrize("which", ["image", "label"])
def test_truncated_files(folder, which):
    path = getattr(folder, which)(3)
    path.write_bytes(path.read_bytes()[:-60])
    form = {"image": "JPEG of mode RGB", "label": "PNG of mode L"}[which]
    locations = folder.only("error", rf"training: 1 {which} cannot be .* \({form}\); .*download")
    assert re.match(rf"{path}: cannot be read as an image \(.*truncated", locations[0])
    path.write_bytes(b"")
    assert folder.only("error", r"\(no image\)")[0].startswith(f"{path}: cannot be read")


def test_a_file_that_crashes_the_decoder(folder, monkeypatch):
    def crash(content: bytes, *, where: str) -> np.ndarray:
        raise MemoryError("no more")

    monkeypatch.setattr("segret_jax.doctor.examine.decode_turned", crash)
    message = "training: 6 images cannot be decoded (JPEG of mode RGB); convert or download again"
    severity, locations = folder.findings()[message]
    assert severity == "error"
    assert locations[0] == f"{folder.image(0)}: the decoder failed (MemoryError('no more'))"


def test_sizes_that_differ(folder):
    folder.write_label(2, label_map(2)[:, :-1])
    locations = folder.only("error", "training: 1 label of another size than the image")
    assert locations == (f"{folder.label(2)} is 36x47 (height x width), its image 36x48",)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "1", "I;16"])
def test_labels_in_forms_that_lose_the_ids(folder, mode):
    Image.new(mode, SIZE[::-1]).save(folder.label(0))
    Image.new(mode, SIZE[::-1]).save(folder.label(4))
    locations = folder.only("error", rf"2 labels cannot be used as such \(PNG of mode {mode}[,)]")
    assert [location.split(":")[0] for location in locations] == [
        str(folder.label(i)) for i in (0, 4)
    ]


def test_a_label_that_is_a_jpeg_under_another_name(folder):
    Image.fromarray(label_map(0)).save(folder.label(0), "JPEG")
    folder.only("error", r"1 label cannot be used as such \(JPEG of mode L\)")


def test_palette_labels_are_noted(folder):
    picture = Image.fromarray(label_map(5))
    picture.putpalette([7] * 768)
    picture.save(folder.label(5))
    locations = folder.only("note", "1 label stored as palette PNG; indices are read as ids")
    assert locations == (str(folder.label(5)),)


def test_images_that_are_not_plain_rgb(folder):
    Image.fromarray(photograph(0)[..., 0]).save(folder.image(0))
    locations = folder.only("note", "1 image stored as JPEG of mode L; read as RGB")
    assert locations == (str(folder.image(0)),)
    Image.fromarray(photograph(0)).convert("CMYK").save(folder.image(0))
    folder.only("note", "JPEG of mode CMYK")
    Image.fromarray(photograph(0)[..., 0].astype(np.uint16)).save(folder.image(0), "PNG")
    locations = folder.only(
        "error", r"1 image cannot be decoded \(PNG of mode I;16, stored as I;16B"
    )
    assert "more than 8 bits per channel" in locations[0]


# Ids and classes


def test_ids_outside_the_table(folder):
    for i, (value, y, x) in enumerate([(11, 3, 7), (200, 20, 0)]):
        label = label_map(i)
        label[y, x] = label[y + 1, x] = value
        folder.write_label(i, label)
    locations = folder.only(
        "error", "training: 2 labels with ids outside the class table: 11, 200;"
    )
    assert locations[0] == f"{folder.label(0)}: 11 at pixel (y=3, x=7); in all 11 (2 px)"
    assert locations[1] == f"{folder.label(1)}: 200 at pixel (y=20, x=0); in all 200 (2 px)"


def test_zero_that_was_not_reduced(folder):
    for i in range(6):
        label = label_map(i)
        folder.write_label(i, np.where(label == 255, 0, label + 1).astype(np.uint8))
    messages = [m for m, (severity, _) in folder.findings().items() if severity == "error"]
    assert len(messages) == 2  # the unknown id, and why
    assert any("one more than the last class, and never 255: they count" in m for m in messages)


def test_a_zero_reduced_in_some_files_names_them(folder):
    spec = get_dataset("ade20k")
    for i in range(6):
        folder.write_label(i, np.tile(np.arange(i, i + 3, dtype=np.uint8), (36, 16)))
    folder.write_label(4, np.full(SIZE, 255, np.uint8))
    findings = doctor.check(spec, folder.root, split="training", workers=1).findings
    (certain,) = [f for f in findings if f.severity == "error"]
    assert "the files hold 255 (16.67% of the pixels)" in certain.message
    assert certain.locations == ("4",)


def test_labels_that_are_ignored_entirely(folder):
    folder.write_label(1, np.full(SIZE, 255, np.uint8))
    assert folder.only("warning", "1 label ignored entirely") == (str(folder.label(1)),)


def test_classes_that_never_occur_or_not_in_training(folder):
    for i in range(6):
        label = label_map(i)
        label[label == 4] = 0
        folder.write_label(i, label)
    findings = folder.findings()
    never = ("note", ("pavement",))
    unseen = ("warning", ("pavement",))
    assert list(findings.values()) == [unseen, never]  # the severest first
    assert "1 class in validation but not in training" in next(iter(findings))
    assert findings["training: classes that never occur: 1 of 11"] == never


def test_a_mask_with_its_foreground_ignored_is_an_error(folder):
    for split, count in (("training", 6), ("validation", 3)):
        for i in range(count):
            label = label_map(i)
            folder.write_label(i, np.where(label < 6, 0, 255).astype(np.uint8), split)
    message = "training: sky is the only class that occurs; if 255 is meant as a class, give it"
    assert any(m.startswith(message) for m in folder.findings())


def test_class_weights_against_the_formula():
    pixels = np.array([900, 90, 0, 10])
    raw = [1 / np.log(1.02 + p) for p in (0.9, 0.09, 0.01)]
    mean = sum(raw) / 3
    expected = [raw[0] / mean, raw[1] / mean, 1.0, raw[2] / mean]
    np.testing.assert_allclose(class_weights(pixels), expected, rtol=1e-12)
    assert class_weights(np.zeros(3, np.int64)).tolist() == [1, 1, 1]


# Duplicates


def test_the_same_image_in_both_splits_and_twice_in_one(folder):
    folder.image(0, "validation").write_bytes(folder.image(3).read_bytes())
    locations = folder.only("error", "1 validation image also in training, pixel by pixel")
    assert locations == ("validation 0 = training 3",)
    Image.fromarray(photograph(100)).save(folder.image(0, "validation"))
    other_bytes = folder.image(1).read_bytes() + b"same pixels"
    folder.image(4).write_bytes(other_bytes)
    locations = folder.only("warning", "training: 1 image found more than once, pixel by pixel")
    assert locations == ("1 = 4",)


def test_an_image_that_was_only_compressed_again(folder):
    with Image.open(folder.image(3)) as image:
        image.save(folder.image(0, "validation"), quality=60)
    locations = folder.only("warning", "1 validation image almost like a training image")
    assert locations == ("validation 0 = training 3",)


def test_plain_images_are_not_called_alike(folder):
    for path, shade in ((folder.image(0), 20), (folder.image(0, "validation"), 90)):
        Image.new("RGB", SIZE[::-1], (shade, shade, shade)).save(path)
    assert folder.check().findings == []


def test_difference_hash_against_a_double_loop():
    image = np.random.default_rng(1).integers(0, 256, (16, 18, 3)).astype(np.uint8)
    cells = image.astype(float).reshape(8, 2, 9, 2, 3).mean(axis=(1, 3))
    gray = cells @ [0.299, 0.587, 0.114]
    bits = "".join(str(int(gray[y, x + 1] > gray[y, x])) for y in range(8) for x in range(8))
    assert difference_hash(image) == int(bits, 2)


# The command


def test_exit_status_terminal_and_files(folder, tmp_path, capsys):
    report = tmp_path / "report"
    assert run(folder, report, "--workers=1") == 0
    printed = capsys.readouterr().out
    assert "camvid training: 6 pairs, layout annotations" in printed
    assert f"--config.train.class_weights={','.join(['1.000'] * 11)}\n" in printed
    assert "camvid: valid" in printed
    assert f"report: {report / 'index.html'}" in printed

    for i in range(5):
        folder.write_label(i, np.full(SIZE, 77, np.uint8))
    assert run(folder, report, "--workers=1", "--split=training") == 1
    printed = capsys.readouterr().out
    assert "error   training: 5 labels with ids outside the class table: 77; correct" in printed
    assert "... and 2 more" in printed
    assert "class_weights" not in printed
    content = json.loads((report / "findings.json").read_text())
    assert content["verdict"].startswith("1 error to correct")
    assert list(content["splits"]) == ["training"]
    (finding,) = content["findings"]
    assert len(finding["locations"]) == 5
    assert content["splits"]["training"]["pixels_by_stored_value"]["77"] == 5 * 36 * 48

    for wrong in (["--split=test"], ["--frobnicate"], ["--workers=-3"]):
        with pytest.raises(InputError, match=wrong[0].split("=")[0]):
            run(folder, report, *wrong)


def test_a_report_that_cannot_be_written(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "full" / "index.html").mkdir(parents=True)
    with pytest.raises(OSError, match=r"index\.html"):
        run(folder, tmp_path / "full", "--workers=1")
    assert "camvid: valid" in capsys.readouterr().out  # what was found is not lost

    monkeypatch.setattr(doctor, "check", None)  # nothing may be read before this fails
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write --report .*: .*file is a file; choose"):
        run(folder, tmp_path / "file")


# Worker processes


class Deadly(RecordSource):
    """Records of which one ends the process that reads it."""

    def __init__(self, source: FolderSource, victim: int) -> None:
        self.source, self.victim = source, victim
        self.spec, self.split, self.layout = source.spec, source.split, source.layout
        self.names = [str(i) for i in range(CHUNK + 1)]

    def record(self, index: int) -> Record:
        if index == self.victim:
            os._exit(1)
        return self.source.record(index % 3)


def test_workers_find_the_same_and_survive_a_crash(folder):
    source = FolderSource(CAMVID, folder.root, "training")
    results = list(examine_all(Deadly(source, CHUNK), workers=2))
    assert [examined.index for examined in results] == list(range(CHUNK + 1))
    (fault,) = results[CHUNK].faults
    assert fault.detail == "reading this pair ended the process that read it"
    serial = list(examine_all(source, workers=1))
    for examined in results[:CHUNK]:
        expected = serial[examined.index % 3]
        assert (examined.digest, examined.stored) == (expected.digest, expected.stored)
