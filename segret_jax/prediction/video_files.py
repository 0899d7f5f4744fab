"""Read the frames of videos, and write H.264 in MP4; with PyAV, an extra."""

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from segret_jax.errors import InputError
from segret_jax.files import damage_as_input_errors, disk_errors_as_input_errors

if TYPE_CHECKING:
    import av

SUFFIXES = set(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .webm .wmv".split()  # noqa: SIM905
)
REMEDY = "videos need PyAV: pip install av"
READING = {  # a file from elsewhere may be a playlist, which names other files and servers
    "protocol_whitelist": "file",
    "format_whitelist": "asf,avi,flv,matroska,webm,mov,mp4,mpeg,mpegts",
}
ENCODING = {"crf": "20"}  # constant quality: lower is better and larger; x264's default is 23
BT709, LIMITED_RANGE = 1, 1  # the colors that players expect where a file says nothing
MISSING = 2.0  # seconds at the end of a video that are not there: it was cut off

RGB = UInt8[np.ndarray, "_ _ 3"]


class Frame(NamedTuple):
    """A frame: RGB, upright, and its time and duration in units of `VideoReader.time_base`."""

    pixels: RGB
    time: int
    duration: int


def is_video(file: Path) -> bool:
    """Return whether a file is named like a video."""
    return file.suffix.lower() in SUFFIXES


def can_read_videos() -> bool:
    """Return whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def stored_text(file: Path) -> dict[str, str]:
    """Return the text that `VideoWriter` stored in a file."""
    with _open(file) as container:
        return json.loads(container.metadata["comment"])


def expected_frames(file: Path) -> int | None:
    """Return the number of frames that a file's header tells or lets expect."""
    try:
        with _open(file) as container:
            stream = _picture_stream(container)
            return stream.frames or round(_duration(container) * stream.average_rate) or None
    except Exception:  # reading it will tell why
        return None


class VideoReader:
    """The frames of a video, one after the other, all of the size of the first.

    Attributes:
        rate: Frames per second on average.
        time_base: The unit of times, in seconds.
        pixel_aspect: Width by height of a pixel.
        fault: What was wrong with the file, once its frames were read.
    """

    def __init__(self, file: Path):
        """Open a file.

        Raises:
            InputError: It is no video.
        """
        self.file, self.fault = file, ""
        with damage_as_input_errors(file):
            self._container = _open(file)
            self._stream = _picture_stream(self._container)
        self._stream.thread_type = "AUTO"
        self.rate = self._stream.average_rate or Fraction(25)
        self.time_base = self._stream.time_base
        self.pixel_aspect = self._stream.sample_aspect_ratio or Fraction(1)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def frames(self) -> Iterator[Frame]:
        """Yield the frames from time 0 on; what is damaged is left out, and `fault` says so."""
        first, size, last, end = None, (0, 0), -1, 0
        for frame in self._decoded():
            if first is None:
                first, size = frame.pts or 0, (frame.width, frame.height)
                if frame.rotation % 180:
                    self.pixel_aspect = 1 / self.pixel_aspect
            time = end if frame.pts is None else frame.pts - first
            last = max(time, last + 1)  # times grow, also in a damaged file
            duration = frame.duration or max(1, round(1 / (self.rate * self.time_base)))
            end = last + duration
            rgb = frame.reformat(*size, format="rgb24").to_ndarray()
            pixels = np.rot90(rgb, frame.rotation // 90)
            yield Frame(np.ascontiguousarray(pixels), last, duration)
        missing = _duration(self._container) - end * self.time_base
        if first is None:
            self.fault = "holds no frame that can be read"
        elif missing > MISSING:
            self.fault = f"is cut off: the last {float(missing):.0f} seconds are missing"

    def _decoded(self) -> Iterator["av.VideoFrame"]:
        import av

        try:
            for packet in self._container.demux(self._stream):
                try:
                    decoded = packet.decode()
                except av.FFmpegError:
                    decoded, self.fault = [], "is damaged or cut off"
                if packet.is_corrupt:
                    self.fault = "is damaged or cut off"
                yield from decoded
        except av.FFmpegError as error:
            self.fault = f"cannot be read to its end ({error.strerror})"


class VideoWriter:
    """An H.264 MP4 with the times of another video; the file appears once it is complete."""

    def __init__(self, file: Path, like: VideoReader, info: Mapping[str, str]):
        self.file, self._like, self._info = file, like, info
        self._partial = file.with_name(f"{file.name}.partial")
        self._container: Any = None

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, picture: RGB, frame: Frame) -> None:
        """Add a picture at the time of `frame`; odd sides get one more row or column.

        Raises:
            InputError: The disk refuses.
        """
        import av

        with _disk_errors(self.file):
            odd = [(0, side % 2) for side in picture.shape[:2]]
            picture = np.pad(picture, (*odd, (0, 0)), mode="edge")
            if self._container is None:
                self._begin(picture.shape[:2])
            encoded = av.VideoFrame.from_ndarray(picture).reformat(
                format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE
            )
            encoded.time_base, encoded.pts = self._like.time_base, frame.time
            encoded.duration = frame.duration
            self._container.mux(self._stream.encode(encoded))

    def _begin(self, size: tuple[int, ...]) -> None:
        import av

        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(
            os.path.abspath(self._partial), "w", format="mp4", options={"movflags": "+faststart"}
        )
        self._container.metadata["comment"] = json.dumps(self._info)
        self._stream = self._container.add_stream("libx264", rate=self._like.rate, options=ENCODING)
        context = self._stream.codec_context
        context.height, context.width = size
        context.pix_fmt, context.time_base = "yuv420p", self._like.time_base
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        context.sample_aspect_ratio = self._stream.sample_aspect_ratio = self._like.pixel_aspect

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._container is None:
            return
        try:
            if kind is None:
                with _disk_errors(self.file):
                    self._container.mux(self._stream.encode())
                    self._container.close()
                    self._partial.replace(self.file)
        finally:
            with suppress(Exception):
                self._container.close()
            self._partial.unlink(missing_ok=True)


@contextmanager
def _disk_errors(file: Path) -> Iterator[None]:
    """Convert errors of the disk, as PyAV raises them."""
    import av

    try:
        with disk_errors_as_input_errors(file):
            yield
    except av.FFmpegError as error:
        raise InputError(f"cannot write {file}: {error.strerror}") from error


def _open(file: Path) -> Any:
    import av

    # The name of a file, such as a:b.mp4, could begin like an address.
    return av.open(os.path.abspath(file), options=READING, metadata_errors="replace")


def _picture_stream(container: Any) -> Any:
    if (stream := container.streams.best("video")) is None:
        raise InputError("holds no pictures")
    return stream


def _duration(container: Any) -> Fraction:
    """Return how long the pictures of a file last by its header, in seconds; 0 if unknown."""
    stream = _picture_stream(container)
    if stream.duration:
        return stream.duration * stream.time_base
    return Fraction(container.duration or 0, 1_000_000)
