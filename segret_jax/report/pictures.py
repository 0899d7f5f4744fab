"""The gallery of a page: images, labels, predictions and error maps inside of it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from segret_jax.data.class_table import IGNORE
from segret_jax.evaluation.gallery import GalleryImage, ranking, scores_by_image
from segret_jax.pages.page import data_uri
from segret_jax.report.gather import RunRecord

MAX_BYTES = 3_500_000  # of all pictures of a page: Plotly takes 5 MB of its 10
NUM_COMMON = 8  # pictures of several runs
NUM_LEGEND = 8  # classes named below a picture
WRONG, IGNORED = (255, 45, 45, 190), (0, 0, 0, 150)  # RGBA of an error map; else transparent


@dataclass(frozen=True)
class Picture:
    """A validation image as the page shows it."""

    name: str
    width: int
    height: int
    photo: str
    label: str
    pred: str
    error: str
    wrong: str
    """Share of the labeled pixels that are wrong."""
    legend: list[tuple[str, str, str]]
    """(color, class name, IoU) of the largest classes."""
    scores: dict[str, tuple[float, int, int]]
    """(IoU in percent, rank from the best, number of images) by class id, and of "all"."""

    @property
    def num_bytes(self) -> int:
        return sum(map(len, (self.photo, self.label, self.pred, self.error)))


def gallery(run: RunRecord) -> list[Picture]:
    """Return the pictures of a run, the most important first, as many as `MAX_BYTES` allow."""
    if run.result is None or run.colors is None:
        return []
    images = run.result.images
    scores = scores_by_image(images)
    weights = np.concatenate([images.label, images.label.sum(1, keepdims=True)], axis=1)
    ranks = np.full(scores.shape, -1)
    for k in range(scores.shape[1]):
        ranked = ranking(scores[:, k], weights[:, k])
        ranks[ranked, k] = np.arange(len(ranked), 0, -1)
    positions = {name: i for i, name in enumerate(run.result.names)}
    pictures, room = [], MAX_BYTES
    for image in run.images:
        if (i := positions.get(image.name)) is None:
            continue
        one = _picture(run, image, _ranked(scores[i], ranks[i], ranks.max(0)))
        room -= one.num_bytes
        if room < 0:
            break
        pictures.append(one)
    return pictures


def common(runs: Sequence[RunRecord]) -> list[list[Picture]]:
    """Return the pictures that all runs have, each as a row; the largest change of mIoU first."""
    by_name = [{one.name: one for one in gallery(run)} for run in runs]
    rows = [
        [found[name] for found in by_name]
        for name in by_name[0]
        if all(name in found for found in by_name)
    ]

    def change(row: list[Picture]) -> float:
        scores = [one.scores["all"][0] for one in row if "all" in one.scores]
        return max(scores, default=0.0) - min(scores, default=0.0)

    return sorted(rows, key=change, reverse=True)[:NUM_COMMON]


def _ranked(
    scores: np.ndarray, ranks: np.ndarray, numbers: np.ndarray
) -> dict[str, tuple[float, int, int]]:
    keys = [*map(str, range(len(scores) - 1)), "all"]
    return {
        keys[k]: (round(100 * float(scores[k]), 1), int(ranks[k]), int(numbers[k]))
        for k in np.flatnonzero(ranks > 0)
    }


def _picture(
    run: RunRecord, image: GalleryImage, scores: dict[str, tuple[float, int, int]]
) -> Picture:
    label, pred = image.label, image.pred
    valid = label != IGNORE
    wrong = valid & (label != pred)
    assert run.colors is not None
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(run.colors)] = run.colors
    sizes = np.bincount(label[valid], minlength=256)[: len(run.class_names)]
    legend = [
        ("#" + run.colors[i].tobytes().hex(), run.class_names[i], f"{scores[str(i)][0]:.0f}")
        for i in np.argsort(-sizes, kind="stable")[:NUM_LEGEND].tolist()
        if str(i) in scores and sizes[i]
    ]
    return Picture(
        name=image.name,
        width=label.shape[1],
        height=label.shape[0],
        photo=data_uri(image.jpeg, "jpeg"),
        label=data_uri(_png(label, palette, transparent=IGNORE), "png"),
        pred=data_uri(_png(pred, palette, transparent=IGNORE), "png"),
        error=data_uri(error_map(wrong, ~valid), "png"),
        wrong=f"{wrong.sum() / max(1, valid.sum()):.1%}",
        legend=legend,
        scores=scores,
    )


def _png(label: np.ndarray, palette: np.ndarray, *, transparent: int) -> bytes:
    image, content = Image.fromarray(label), io.BytesIO()
    image.putpalette(palette.tobytes())
    image.save(content, "PNG", transparency=transparent)
    return content.getvalue()


def error_map(wrong: Bool[np.ndarray, "h w"], ignored: Bool[np.ndarray, "h w"]) -> bytes:
    """Return a PNG that is red where a pixel is wrong, dark where ignored, else transparent."""
    indices: UInt8[np.ndarray, "h w"] = np.where(wrong, np.uint8(1), np.uint8(2) * ignored)
    image, content = Image.fromarray(indices), io.BytesIO()
    colors = [(0, 0, 0, 0), WRONG, IGNORED]
    image.putpalette([value for *rgb, _ in colors for value in rgb])
    image.save(content, "PNG", transparency=bytes(alpha for *_, alpha in colors))
    return content.getvalue()
