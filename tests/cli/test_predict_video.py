"""Videos as they are in life, read and written by `segret predict` with a stand-in for a model."""

import errno
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from segret_jax.data.class_table import load_class_table
from segret_jax.errors import InputError
from segret_jax.prediction.outputs import is_own_output
from segret_jax.prediction.video_files import VideoReader
from segret_jax.visualize.pictures import colorize, overlay
from tests.cli.test_predict import CAMVID, Reads, ReadScores, contents, picture

HEIGHT, WIDTH = 48, 64
RATE = Fraction(24000, 1001)


def frames(count: int, *, size: tuple[int, int] = (HEIGHT, WIDTH)) -> list[np.ndarray]:
    """Return pictures that survive a codec: one gray each, with a bright right half."""
    found = []
    for i in range(count):
        pixels = np.full((*size, 3), 30 + 8 * i, np.uint8)
        pixels[:, size[1] // 2 :] = 220
        found.append(pixels)
    return found


def write_video(
    file: Path, pixels: list[np.ndarray], *, codec: str = "libx264", rate: Fraction = RATE,
    times: list[int] | None = None, rotation: float = 0, aspect: Fraction | None = None,
    sound: bool = False, options: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """Write a video; `times` are in milliseconds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(file, "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pixels[0].shape[:2]
        stream.pix_fmt = "yuv444p" if codec == "libx264" else "yuv420p"
        stream.gop_size = 4
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect:
            stream.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio = aspect
        if sound:
            audio: Any = container.add_stream("aac", rate=8000)
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            noise.sample_rate = 8000
            container.mux(audio.encode(noise))
        for i, one in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(one)
            frame.pts, frame.time_base = (times[i], Fraction(1, 1000)) if times else (i, 1 / rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            container.mux(audio.encode())
    return file


def read(file: Path) -> tuple[list[np.ndarray], list[float]]:
    """Return the frames of a video and their times in seconds."""
    with VideoReader(file) as reader:
        found = [(frame.pixels, float(frame.time * reader.time_base)) for frame in reader.frames()]
        assert not reader.fault
    return [pixels for pixels, _ in found], [time for _, time in found]


def test_an_overlay_has_the_frames_times_and_rate_of_its_video(run, tmp_path):
    source = write_video(tmp_path / "clip.mov", frames(9), sound=True)
    status, out, err = run(source, tmp_path / "out", "--save", "overlay,color")
    assert status == 0
    assert out.startswith("1 video (9 frames) segmented with ")
    assert "9/9" in err
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "clip_color.mp4", "clip_overlay.mp4",
    ]  # fmt: skip
    images, times = read(source)
    for name, draw in (
        ("color", lambda x, ids: colorize(ids, CAMVID)),
        ("overlay", lambda x, ids: overlay(x, ids, CAMVID)),
    ):
        with av.open(tmp_path / "out" / f"clip_{name}.mp4") as container:
            (stream,) = container.streams
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
            assert (stream.average_rate, stream.frames) == (RATE, 9)
        found, when = read(tmp_path / "out" / f"clip_{name}.mp4")
        assert when == pytest.approx(times)
        for image, shown in zip(images, found, strict=True):
            expected = draw(image, ReadScores(image).label_map)
            shown = shown[:HEIGHT, :WIDTH].astype(int)
            assert abs(shown - expected).mean() < 6, name


def test_without_a_legend_overlays_have_the_size_of_their_source(run, tmp_path):
    size = (120, 320)
    source = write_video(tmp_path / "in" / "x.mp4", frames(2, size=size))
    picture(tmp_path / "in" / "y.jpg", size=size[::-1])
    for out, options in (("with", ()), ("without", ("--no-legend",))):
        assert run(tmp_path / "in", tmp_path / out, *options)[0] == 0
        video = read(tmp_path / out / "x_overlay.mp4")[0][0].shape[:2]
        image = np.asarray(Image.open(tmp_path / out / "y_overlay.png")).shape[:2]
        assert (video == size, image == size) == (out == "without",) * 2
    assert read(source)[0][0].shape[:2] == size


def test_times_of_a_variable_rate_are_kept(run, tmp_path):
    times = [0, 40, 80, 300, 340, 1000]
    source = write_video(tmp_path / "phone.mkv", frames(6), times=times)
    assert run(source, tmp_path / "out")[0] == 0
    _, found = read(tmp_path / "out" / "phone_overlay.mp4")
    assert found == pytest.approx([time / 1000 for time in times])


def test_odd_sides_and_wide_pixels_keep_their_shape(run, tmp_path):
    source = write_video(tmp_path / "odd.mkv", frames(2, size=(33, 47)), aspect=Fraction(4, 3))
    assert run(source, tmp_path / "out", "--save", "color")[0] == 0
    with av.open(tmp_path / "out" / "odd_color.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (34, 48)
        assert stream.sample_aspect_ratio == Fraction(4, 3)
    shown = read(tmp_path / "out" / "odd_color.mp4")[0][0].astype(int)
    assert abs(shown[-1] - shown[-2]).max() < 40


def test_a_video_is_turned_upright(run, tmp_path):
    source = write_video(tmp_path / "turned.mp4", frames(2), rotation=90, aspect=Fraction(4, 3))
    assert run(source, tmp_path / "out", "--save", "color")[0] == 0
    (image, _), _ = read(source)
    assert image.shape == (WIDTH, HEIGHT, 3)
    bright, dark = image[: WIDTH // 2 - 4].mean(), image[WIDTH // 2 + 4 :].mean()
    assert bright > 200 > 60 > dark  # counterclockwise: the right half is above
    with av.open(tmp_path / "out" / "turned_color.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (WIDTH, HEIGHT)
        assert stream.sample_aspect_ratio == Fraction(3, 4)
        assert next(container.decode(stream)).rotation == 0


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.avi", "mpeg4"), ("a.webm", "libvpx"), ("a.mpg", "mpeg2video"), ("a.flv", "flv1")],
)
def test_other_containers_and_codecs_are_read(run, tmp_path, name, codec):
    source = write_video(
        tmp_path / name, frames(4), codec={"flv1": "flv"}.get(codec, codec), rate=Fraction(25)
    )
    assert run(source, tmp_path / "out")[0] == 0
    assert len(read(tmp_path / "out" / "a_overlay.mp4")[0]) == 4


# Smoothing


class Blends(ReadScores):
    """Scores whose average is over the probabilities, one class per pixel in each frame."""

    def __init__(self, image: np.ndarray):
        super().__init__(image)
        self.mean = np.eye(CAMVID.num_classes)[self.label_map] + 1e-3 * (image[..., :1] / 255)

    def averaged(self, others: list[Any]) -> Any:
        mean = np.mean([one.mean for one in (self, *others)], 0)
        result = Blends.__new__(Blends)
        result.mean, result.label_map = mean, mean.argmax(-1).astype(np.uint8)
        return result


def test_the_average_is_over_the_last_frames(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Reads, "scores", lambda self, batch: Blends(*batch))
    flicker = [np.full((HEIGHT, WIDTH, 3), red, np.uint8) for red in (22, 22, 47, 22, 47, 47, 47)]
    source = write_video(tmp_path / "x.mkv", flicker)
    images, _ = read(source)
    ids = [int(ReadScores(image).label_map[0, 0]) for image in images]
    assert ids == [0, 0, 3, 0, 3, 3, 3]
    for count, expected in ((1, ids), (3, [0, 0, 0, 0, 3, 3, 3])):
        out = tmp_path / str(count)
        assert run(source, out, "--save", "color", "--average", str(count))[0] == 0
        shown = [pixels.mean((0, 1)) for pixels in read(out / "x_color.mp4")[0]]
        distances = np.abs(np.array(shown)[:, None] - CAMVID.colors).sum(-1)
        assert distances.argmin(-1).tolist() == expected


@pytest.mark.parametrize("text", ["0", "2.5", "x"])
@pytest.mark.parametrize(
    ("option", "unit"), [("--average", "frames"), ("--cpus-per-model", "CPU cores")]
)
def test_what_is_no_whole_number_is_one_line(run, tmp_path, option, unit, text):
    with pytest.raises(InputError) as error:
        run(tmp_path, tmp_path / "out", option, text, "--ray")
    assert str(error.value) == f"{option} {text}: must be a whole number of {unit}, 1 or more"


def test_an_average_without_videos_is_refused(run, tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "photo.png")
    with pytest.raises(InputError, match="--average 3 is for videos, and there is none"):
        run(tmp_path / "photo.png", tmp_path / "out", "--average", "3")


# What is left out, and what goes wrong


def cut(file: Path, share: float) -> Path:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    return file


def test_a_cut_video_gives_the_frames_that_are_there(run, tmp_path):
    noise = [*np.random.default_rng(0).integers(0, 256, (40, HEIGHT, WIDTH, 3), np.uint8)]
    cut(write_video(tmp_path / "in" / "a.mp4", noise, options={"movflags": "+faststart"}), 0.5)
    slow = [100 * i for i in range(40)]
    cut(write_video(tmp_path / "in" / "b.mkv", noise, times=slow), 0.4)
    cut(write_video(tmp_path / "in" / "c.mp4", noise), 0.5)  # its index stood at the end
    (tmp_path / "in" / "d.avi").write_text("#EXTM3U\nhttp://localhost/film.ts\n")
    (tmp_path / "in" / "e.mov").touch()
    picture(tmp_path / "in" / "f.jpg")
    status, out, err = run(tmp_path / "in", tmp_path / "out")
    assert status == 1
    assert "1 picture and 2 videos (" in out
    lines = err[err.index("5 could not") :].splitlines()[1:]
    assert ["frames that could be read are written" in line for line in lines] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert "a.mp4: is damaged or cut off; its " in lines[0]
    assert "b.mkv: is cut off: the last 3 seconds are missing; its " in lines[1]
    for name in ("a", "b"):
        assert 10 <= len(read(tmp_path / "out" / f"{name}_overlay.mp4")[0]) <= 24
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["a_overlay.mp4", "b_overlay.mp4", "f_label.png", "f_overlay.png"]
    with pytest.raises(InputError) as error:
        run(tmp_path / "in" / "c.mp4", tmp_path / "alone")
    reason = "Invalid data found when processing input"
    assert str(error.value) == (
        f"{tmp_path / 'in' / 'c.mp4'}: is damaged or cut off ({reason}); download or save it again"
    )
    assert run(tmp_path / "in" / "a.mp4", tmp_path / "alone")[0] == 1  # a part is written


def test_own_videos_are_replaced_and_not_read_and_foreign_ones_stay(run, tmp_path):
    source = write_video(tmp_path / "x.mp4", frames(3))
    for _ in range(2):
        status, out, _ = run(tmp_path, tmp_path)
        assert (status, out[:18]) == (0, "1 video (3 frames)")
    assert "not read, as written by segret predict or eval: 1" in out
    assert is_own_output(tmp_path / "x_overlay.mp4")
    foreign = write_video(tmp_path / "out" / "x_overlay.mp4", frames(2)).read_bytes()
    with pytest.raises(InputError, match=r"x_overlay\.mp4 exists and is not an output of ours"):
        run(source, tmp_path / "out")
    assert (tmp_path / "out" / "x_overlay.mp4").read_bytes() == foreign


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_no_half_one(run, tmp_path, monkeypatch, error):
    source = write_video(tmp_path / "x.mp4", frames(6))
    run(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    calls = iter([None, None, None, error])

    def pad(*args: Any, **options: Any) -> Any:
        if failure := next(calls):
            raise failure
        return np_pad(*args, **options)

    np_pad = np.pad
    monkeypatch.setattr(np, "pad", pad)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError
    with pytest.raises(expected, match="cannot write .*: full" if error.args else None):
        run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_of_videos_only_what_suits_them_is_written(run, tmp_path):
    video = write_video(tmp_path / "in" / "x.mp4", frames(2))
    picture(tmp_path / "in" / "y.jpg")
    _, out, _ = run(tmp_path / "in", tmp_path / "out", "--save", "json")
    assert out.splitlines()[1:] == [
        "not read, as no image of a known kind: 1 .mp4 "
        "(of videos --save writes overlay and color alone)"
    ]
    with pytest.raises(InputError, match=r"x\.mp4: of videos --save writes overlay and color"):
        run(video, tmp_path / "out", "--save", "json")
    _, out, _ = run(tmp_path / "in", tmp_path / "both", "--save", "json,overlay")
    assert out.splitlines()[1:] == ["not written of videos: json"]
    assert out.startswith("1 picture and 1 video (2 frames) segmented with ")
    names = sorted(file.name for file in (tmp_path / "both").iterdir())
    assert names == ["x_overlay.mp4", "y.json", "y_overlay.png"]


def test_a_missing_package_is_one_line_with_the_remedy(run, tmp_path, monkeypatch):
    video = write_video(tmp_path / "in" / "x.mp4", frames(2))
    picture(tmp_path / "in" / "y.jpg")
    monkeypatch.setitem(sys.modules, "av", None)
    remedy = "videos need PyAV: pip install av"
    with pytest.raises(InputError) as found:
        run(video, tmp_path / "out")
    assert str(found.value) == f"{video}: {remedy}"
    status, out, _ = run(tmp_path / "in", tmp_path / "out")
    assert status == 0
    assert out.splitlines()[1:] == [f"not read, as no image of a known kind: 1 .mp4 ({remedy})"]


def test_a_legend_of_many_classes_is_left_out():
    from segret_jax.prediction.video import _legend

    small = np.zeros((120, 320, 3), np.uint8)
    assert 0 < len(_legend(small, CAMVID)) < 60
    assert len(_legend(small, load_class_table("ade20k"))) == 0
