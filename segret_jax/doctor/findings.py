"""From what was learned of each pair to findings about the dataset."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from segret_jax.data.class_table import STRAY
from segret_jax.data.folders import counted
from segret_jax.data.layouts import DatasetSpec
from segret_jax.data.learnable import only_class_of_labels, only_class_of_table
from segret_jax.data.shift_signs import REMEDY, shift_signs
from segret_jax.data.sources import RecordSource
from segret_jax.doctor.duplicates import NEAR, repeated, shared
from segret_jax.doctor.examine import Examined

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")


class Kind(NamedTuple):
    """What is said of the faults of one kind, behind their number; `{form}` is that of the file."""

    severity: str
    noun: str
    text: str
    remedy: str


KINDS = {
    "unreadable": Kind(ERROR, "pair", "cannot be read", "mend or download these files again"),
    "image_unreadable": Kind(
        ERROR, "image", "cannot be decoded ({form})", "convert or download again"
    ),
    "label_unreadable": Kind(
        ERROR,
        "label",
        "cannot be used as such ({form})",
        "convert to an 8-bit gray or palette PNG of label ids, or download again",
    ),
    "sizes": Kind(
        ERROR, "label", "of another size than the image", "take image and label of the same size"
    ),
    "stray": Kind(
        ERROR,
        "label",
        "with ids outside the class table",
        "correct the files, or choose the dataset whose labels these are",
    ),
    "ignored": Kind(WARNING, "label", "ignored entirely", "nothing is learned there: leave it out"),
    "exif": Kind(
        NOTE, "image", "turned upright by the EXIF orientation", "the label fits the upright image"
    ),
    "label_turned": Kind(
        NOTE, "label", "turned with the image", "it fits the image as stored, before EXIF turns it"
    ),
    "exif_unclear": Kind(
        WARNING,
        "image",
        "of the same size before and after its EXIF orientation",
        "the label is taken as drawn on the turned image: look at it in the report, and remove the "
        "orientation where it lies wrong",
    ),
    "frames": Kind(
        NOTE, "image", "with several frames", "only the first is read: store others as images"
    ),
    "image_form": Kind(NOTE, "image", "stored as {form}", "read as RGB"),
    "palette": Kind(
        NOTE, "label", "stored as palette PNG", "indices are read as ids, never the colors"
    ),
}
OWN_STRAY = 'give them a class in your JSON file ("raw_id"), name them in "ignore", or '


@dataclass(frozen=True)
class Finding:
    """One thing about the dataset: a line with its remedy, and the places where it was found."""

    severity: str
    message: str
    split: str = ""
    places: tuple[str, ...] = ()


@dataclass(kw_only=True)
class SplitScan:
    """All that is known of one split."""

    source: RecordSource
    examined: list[Examined]
    stored: Int64[np.ndarray, "256"] = field(init=False)  # pixels by stored value
    pixels: Int64[np.ndarray, "k"] = field(init=False)  # by class
    images: Int64[np.ndarray, "k"] = field(init=False)  # in which a class occurs

    def __post_init__(self) -> None:
        lookup = self.source.layout.lookup
        num_classes = self.source.spec.class_table.num_classes
        self.stored = np.zeros(256, np.int64)
        self.images = np.zeros(num_classes, np.int64)
        for examined in self.examined:
            values = np.array(list(examined.stored), np.intp)
            self.stored[values] += np.array(list(examined.stored.values()), np.int64)
            classes = np.unique(lookup[values])
            self.images[classes[classes < STRAY]] += 1
        values = np.flatnonzero(lookup < STRAY)
        self.pixels = np.zeros(num_classes, np.int64)
        np.add.at(self.pixels, lookup[values], self.stored[values])

    def share(self, meaning: int) -> float:
        """Return the share of the pixels that are IGNORE or STRAY."""
        values = self.source.layout.lookup == meaning
        return float(self.stored[values].sum() / max(self.stored.sum(), 1))


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The outcome of a check."""

    spec: DatasetSpec
    root: str
    scans: dict[str, SplitScan]
    findings: list[Finding]

    def count(self, severity: str) -> int:
        """Return the number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def verdict(self) -> str:
        """Say in one line whether a run can use the data."""
        if errors := self.count(ERROR):
            return f"{counted(errors, 'error')} to mend before a run"
        warnings = self.count(WARNING)
        return f"no errors, {counted(warnings, 'warning')} to look at" if warnings else "sound"


def find_all(splits: dict[str, SplitScan], known: list[Finding]) -> list[Finding]:
    """Return the findings of all splits and those `known` already, the severest first."""
    findings = known + [
        finding
        for split, scan in splits.items()
        for rule in (_faults, _signs, _classes, _repeated)
        for finding in rule(split, scan)
    ]
    if {"training", "validation"} <= set(splits):
        findings += _between(splits["training"], splits["validation"])
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _faults(split: str, scan: SplitScan) -> Iterator[Finding]:
    groups = defaultdict(list)
    for examined in scan.examined:
        for fault in examined.faults:
            groups[fault.kind, fault.form].append(fault.detail)
    layout = scan.source.layout
    for (name, form), details in groups.items():
        severity, noun, text, remedy = KINDS[name]
        text = f"{counted(len(details), noun)} {text.format(form=form)}"
        if name == "stray":
            ids = np.flatnonzero((scan.stored > 0) & (layout.lookup == STRAY))
            text += f": {', '.join(map(str, ids))}"
            remedy = OWN_STRAY + remedy if layout.name == "own" else remedy
        yield Finding(severity, f"{text}; {remedy}", split, tuple(details))


def _signs(split: str, scan: SplitScan) -> Iterator[Finding]:
    for sign in shift_signs(scan.stored, scan.source.layout):
        names = [e.name for e in scan.examined if not e.stored.keys().isdisjoint(sign.values)]
        severity = ERROR if sign.certain else WARNING
        yield Finding(severity, f"{sign.text}; {REMEDY}", split, tuple(names))


def _classes(split: str, scan: SplitScan) -> Iterator[Finding]:
    table, layout = scan.source.spec.class_table, scan.source.layout
    only = only_class_of_table(table) or only_class_of_labels(scan.stored, layout, table)
    if only:  # training would refuse it
        yield Finding(ERROR if split == "training" else WARNING, only, split)
    names, absent = np.array(table.class_names), scan.pixels == 0
    if absent.any() and not absent.all():
        text = f"classes that never occur: {np.count_nonzero(absent)} of {len(names)}"
        yield Finding(NOTE, text, split, tuple(names[absent]))


def _repeated(split: str, scan: SplitScan) -> Iterator[Finding]:
    groups = tuple(" = ".join(names) for names in repeated(scan.examined))
    if groups:
        text = f"{counted(len(groups), 'image')} found more than once, pixel by pixel; keep one"
        yield Finding(WARNING, text, split, groups)


def _between(training: SplitScan, validation: SplitScan) -> Iterator[Finding]:
    names = training.source.spec.class_table.class_names
    unseen = np.flatnonzero((validation.pixels > 0) & (training.pixels == 0))
    if unseen.size:
        text = f"{counted(unseen.size, 'class')} in validation but not in training; no such pixel "
        yield Finding(WARNING, f"{text}can be right", places=tuple(names[i] for i in unseen))
    same, alike = shared(validation.examined, training.examined)
    if same:
        text = f"{counted(len(same), 'validation image')} also in training, pixel by pixel; leave "
        yield Finding(ERROR, f"{text}it out of one split", places=_pairs(same))
    if alike:
        text = (
            f"{counted(len(dict(alike)), 'validation image')} almost like a training image "
            f"(difference hash within {NEAR} of 64 bits): the same photograph, or neighbors in a "
            "video; the score may be too good"
        )
        yield Finding(WARNING, text, places=_pairs(alike))


def _pairs(names: list[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(f"validation {one} = training {other}" for one, other in names)


def class_weights(pixels: Int64[np.ndarray, "k"]) -> Float64[np.ndarray, "k"]:
    """Return loss weights 1 / ln(1.02 + p) of classes whose share of the labeled pixels is p.

    Rare classes weigh more, none more than 36 times as much as another. Scaled to mean 1 over the
    classes that occur; 1 for those that do not. From ENet (Paszke et al., 2016).
    """
    present = pixels > 0
    weights = 1 / np.log(1.02 + pixels / max(int(pixels.sum()), 1))
    if present.any():
        weights /= weights[present].mean()
    return np.where(present, weights, 1.0)


def weights_setting(pixels: Int64[np.ndarray, "k"]) -> str:
    """Write the suggested weights as an argument of `segret train`, which no shell changes."""
    weights = ",".join(f"{weight:.3f}" for weight in class_weights(pixels))
    return f"--config.train.class_weights={weights}"
