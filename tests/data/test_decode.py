"""Decoding of images and labels; every fault must raise the message that names it."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from segret_jax.data.class_table import label_lookup
from segret_jax.data.decode import decode_image, decode_label, map_label
from segret_jax.errors import InputError


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(height * width).integers(0, 256, (height, width, channels))
    return values.astype(np.uint8)


def write_raw_png(path: Path, *, depth: int, color_type: int, rows: bytes) -> Path:
    """Write a 2x2 PNG in a form that Pillow cannot write; `rows` hold the filter bytes too."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, depth, color_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    return path


def refuses(path: Path, fault: str, *words: str, label: bool = False) -> None:
    """Assert that decoding raises one line that opens with path and fault and has the words."""
    with pytest.raises(InputError) as caught:
        (decode_label if label else decode_image)(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: {fault}")
    for word in words:
        assert word in message


# Images


def test_image_is_rgb_in_that_order(tmp_path: Path) -> None:
    image = pixels(5, 7)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png"), image)


def test_gray_alpha_palette_and_cmyk_become_rgb(tmp_path: Path) -> None:
    image = pixels(5, 7, 4)
    Image.fromarray(image).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "rgba.png"), image[..., :3])

    Image.fromarray(image[..., 0]).save(tmp_path / "gray.png")
    gray = decode_image(tmp_path / "gray.png")
    np.testing.assert_array_equal(gray, np.repeat(image[..., :1], 3, axis=2))

    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "palette.png", transparency=b"\x00\x80\xff")
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    assert decode_image(tmp_path / "palette.png").tolist() == expected

    Image.new("CMYK", (3, 2), (0, 255, 255, 0)).save(tmp_path / "cmyk.tiff")
    red = decode_image(tmp_path / "cmyk.tiff")
    assert red.shape == (2, 3, 3)
    assert (red == [255, 0, 0]).all()


def test_16_bit_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "gray.png")
    refuses(tmp_path / "gray.png", "image has more than 8 bits", "I;16", "8-bit RGB")
    Image.new("F", (2, 2)).save(tmp_path / "float.tiff")
    refuses(tmp_path / "float.tiff", "image has more than 8 bits", "F;32F", "8-bit RGB")
    rgb = write_raw_png(tmp_path / "rgb.png", depth=16, color_type=2, rows=bytes(2 * 13))
    refuses(rgb, "image has more than 8 bits", "RGB;16B", "8-bit RGB")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_file_is_refused_or_complete(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels(40, 40)).save(path)
    complete, content = decode_image(path), path.read_bytes()
    refused = 0
    for length in range(1, len(content), 97):
        path.write_bytes(content[:length])
        try:
            np.testing.assert_array_equal(decode_image(path), complete)
        except InputError:
            refused += 1
    assert refused > 5
    path.write_bytes(content[: len(content) // 2])
    refuses(path, "cannot be read as an image", "download or extract it again")


def test_files_that_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.jpg").touch()
    refuses(tmp_path / "empty.jpg", "cannot be read as an image")
    refuses(tmp_path / "absent.jpg", "no such file")
    refuses(tmp_path, "cannot be read as an image", "directory")
    Image.fromarray(pixels(10, 10)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    refuses(tmp_path / "bomb.png", "image is too large", "cut it into tiles")


# Labels


def test_gray_and_palette_labels_hold_ids(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 150], [255, 18, 3]], np.uint8)
    Image.fromarray(ids).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(decode_label(tmp_path / "gray.png"), ids)

    palette = Image.fromarray(ids)
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(tmp_path / "palette.png")
    with Image.open(tmp_path / "palette.png") as stored:
        assert stored.mode == "P"
    np.testing.assert_array_equal(decode_label(tmp_path / "palette.png"), ids)

    few = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8))
    few.putpalette([9] * 12)
    few.save(tmp_path / "four_colors.png", bits=2)
    assert decode_label(tmp_path / "four_colors.png").tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1", "I;16"])
def test_labels_of_other_modes_are_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "label.png"
    Image.new(mode, (3, 2)).save(path)
    refuses(path, f"label is a PNG of mode {mode} ", "8-bit gray or palette PNG", label=True)


def test_labels_whose_ids_do_not_survive_are_refused(tmp_path: Path) -> None:
    four_bit = write_raw_png(tmp_path / "label.png", depth=4, color_type=0, rows=b"\0\x12\0\x34")
    with Image.open(four_bit) as stretched:
        assert np.array(stretched).tolist() == [[17, 34], [51, 68]]  # what Pillow makes of it
    refuses(
        four_bit,
        "label is a PNG of mode L (stored as L;4)",
        "8-bit gray or palette PNG",
        label=True,
    )
    Image.new("L", (3, 2)).save(tmp_path / "label.jpg")
    refuses(tmp_path / "label.jpg", "label is a JPEG", "8-bit gray or palette PNG", label=True)


def test_broken_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "label.png"
    refuses(path, "no such file", label=True)
    Image.fromarray(pixels(40, 40, 1)[..., 0]).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:600])
    refuses(path, "cannot be read as an image", label=True)
    length = content.index(b"IDAT") - 4
    path.write_bytes(content[:length] + struct.pack(">I", 99) + content[length + 4 :])
    refuses(path, "cannot be read as an image (broken PNG", label=True)


def test_map_label_names_the_unknown_id_and_its_pixel() -> None:
    lookup = label_lookup({0: 255, 1: 0, 2: 1, 255: 255})
    raw = np.array([[0, 1, 2], [1, 9, 255], [7, 1, 9]], np.uint8)
    with pytest.raises(InputError) as caught:
        map_label(raw, lookup, path="x/y.png")
    message = str(caught.value)
    assert message.startswith("x/y.png: label id 9 at pixel (y=1, x=1)")
    assert "3 such pixels with ids [7, 9]" in message
    clean = map_label(raw[:1], lookup, path="x/y.png")
    assert (clean.tolist(), clean.dtype) == ([[255, 0, 1]], np.uint8)


@pytest.mark.parametrize("content", [b"MATLAB 5.0 MAT-file, cut off", None, np.ones((2, 2)), 300])
def test_a_mat_file_without_a_label_map_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "a.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        scipy.io.savemat(path, {"T": 1} if content is None else {"S": content})
    with pytest.raises(InputError, match=re.escape(str(path))):
        decode_label(path)
