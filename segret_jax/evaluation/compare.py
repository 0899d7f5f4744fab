"""Comparison of two results: differences in protocol, and in mIoU with a 95% interval."""

from typing import Any

import numpy as np

from segret_jax.evaluation.pixel_counts import interval, mean, resampled_mean_iou
from segret_jax.evaluation.results import SavedResult

REASONS = {
    "dataset": "scores on different data say nothing about each other",
    "split": "another part of the dataset; one of them may be the training images",
    "num_images": "part of the set is missing, or it is another set",
    "images": "not the same images",
    "classes": "another label table: mIoU is a mean over other classes",
    "labels": "other labels of these images: other ignored pixels, ids or sizes",
    "resize_target": "the network saw the images at another size",
    "multiple_of": "the network saw the images at slightly other sizes",
    "min_side": "the network saw images with a shorter side stretched to this length",
    "logits_resize": "the network's output came back to the image's size in another way",
    "mode": "whole images and windows give the network another context",
    "window": "the network saw another part of each image at once",
    "stride": "the windows overlap differently",
    "scales": "averaging over scales raises mIoU: by 0.2 to 1.1 points in the published results",
    "flip": "averaging with the mirrored image usually raises mIoU",
}
# Differences that follow from another one, which is named instead.
CAUSES = {"labels": "images", "window": "mode", "stride": "mode"}
NUM_CLASSES = 5  # whose change is shown


def differences(a: SavedResult, b: SavedResult) -> list[str]:
    """Return a line for each setting that differs and must agree, with the reason."""
    lines = _differing(a.protocol["must_agree"], b.protocol["must_agree"])
    found = [
        f"{line}\n      {REASONS.get(key, 'a setting that this version does not know')}"
        for key, line in lines.items()
        if CAUSES.get(key) not in lines
    ]
    only_a, only_b = set(a.names) - set(b.names), set(b.names) - set(a.names)
    for own, name in ((only_a, "A"), (only_b, "B")):
        if own and "images" in lines:
            found.append(f"{len(own)} images only in {name}, such as {min(own)}")
    if lines.keys() & {"labels", "images", "classes"} == {"labels"}:
        image = int((a.images.label != b.images.label).any(1).argmax())
        found.append(f"the first image whose labels differ: {a.names[image]}")
    return found


def allowed(a: SavedResult, b: SavedResult) -> list[str]:
    """Return a line for each setting that differs and may differ."""
    return [*_differing(a.protocol["may_differ"], b.protocol["may_differ"]).values()]


def _differing(a: dict[str, Any], b: dict[str, Any]) -> dict[str, str]:
    keys = [key for key in a | b if a.get(key) != b.get(key)]
    return {key: f"{key}: A {_plain(a.get(key))}, B {_plain(b.get(key))}" for key in keys}


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "(" + ", ".join(map(str, value)) + ")"
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)  # a hash


def left_out(a: SavedResult, b: SavedResult) -> list[str]:
    """Return a line for each result that misses images that could not be read."""
    faults = [("A", a.content.get("faults")), ("B", b.content.get("faults"))]
    reason = "images were left out, such as"
    return [f"{n} is incomplete: {len(x)} {reason} {x[0]}" for n, x in faults if x]


def difference(a: SavedResult, b: SavedResult) -> str:
    """Return mIoU of both and B - A, each with its interval, and the classes that changed most.

    The bootstrap is paired: both are scored on the same draws of images, so that the difficulty of
    a draw cancels.

    Args:
        a: A result.
        b: Another one, of the same images.
    """
    samples = [resampled_mean_iou(result.images) for result in (a, b)]
    iou = [result.images.total().iou for result in (a, b)]
    scores, lines = [float(mean(values)) for values in iou], []
    for name, score, drawn in zip("AB", scores, samples, strict=True):
        low, high = interval(drawn)
        lines.append(f"{name} mIoU  {100 * score:.2f}  [{100 * low:.2f}, {100 * high:.2f}]")
    low, high = interval(samples[1] - samples[0])
    verdict = f"it excludes 0: {'B' if low > 0 else 'A'} is better on images like these"
    if low <= 0 <= high:
        verdict = "it includes 0: these images do not tell A from B"
    change = f"{100 * (scores[1] - scores[0]):+.2f}  [{100 * low:+.2f}, {100 * high:+.2f}]"
    lines += [f"B - A   {change}, paired; {verdict}", ""]
    return "\n".join(lines + _changes(*iou, names=[*a.content["classes"]]))


def _changes(a: np.ndarray, b: np.ndarray, *, names: list[str]) -> list[str]:
    """Describe the classes whose IoU changed most, of those that occur in both."""
    change = np.nan_to_num(b - a)
    most = [i for i in np.argsort(-np.abs(change), kind="stable")[:NUM_CLASSES] if change[i]]
    width = max((len(names[i]) for i in most), default=0)
    return ["Classes that changed most, IoU:" if most else "No class changed."] + [
        f"  {names[i]:<{width}}  {100 * a[i]:6.2f} -> {100 * b[i]:6.2f}  {100 * change[i]:+6.2f}"
        for i in most
    ]
