"""Findings about a dataset, from the examined pairs."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int64

from segret_jax.data.class_table import UNKNOWN
from segret_jax.data.folders import plural
from segret_jax.data.layouts import DatasetSpec
from segret_jax.data.learnable import only_class_of_labels, only_class_of_table
from segret_jax.data.shift_signs import REMEDY, shift_signs
from segret_jax.data.sources import RecordSource
from segret_jax.doctor.examine import Examined

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")
NEAR = 3  # bits in which the difference hashes of two images that look alike may differ
MIN_BITS = 8  # an image with fewer bits set, or not set, is too plain to be told by its hash


# By kind of fault: severity, noun, text that follows the number of faults, remedy.
KINDS = {
    "unreadable": (ERROR, "pair", "cannot be read", "mend or download these files again"),
    "image_unreadable": (ERROR, "image", "cannot be decoded ({form})", "convert or download again"),
    "label_unreadable": (
        ERROR,
        "label",
        "cannot be used as such ({form})",
        "convert to 8-bit PNG or download again",
    ),
    "sizes": (ERROR, "label", "of another size than the image", "use one size for both"),
    "unknown": (
        ERROR,
        "label",
        "with ids outside the class table",
        "correct them or choose their dataset",
    ),
    "ignored": (WARNING, "label", "ignored entirely", "nothing is learned there: leave it out"),
    "exif": (NOTE, "image", "turned upright by EXIF", "the label fits the upright image"),
    "label_turned": (NOTE, "label", "turned with the image", "it fits the image before EXIF"),
    "exif_unclear": (
        WARNING,
        "image",
        "of the same size before and after its EXIF orientation",
        "look at the label in the report, and remove the orientation where it lies wrong",
    ),
    "frames": (NOTE, "image", "with several frames", "only the first is read"),
    "image_form": (NOTE, "image", "stored as {form}", "read as RGB"),
    "palette": (NOTE, "label", "stored as palette PNG", "indices are read as ids"),
}
OWN_UNKNOWN = 'give them a class in your JSON file ("raw_id"), name them in "ignore", or '


@dataclass(frozen=True)
class Finding:
    """One finding: a line with its remedy, and the locations where it was found."""

    severity: str
    message: str
    split: str = ""
    locations: tuple[str, ...] = ()


@dataclass(kw_only=True)
class SplitScan:
    """The examined pairs of one split, and what they hold in all."""

    source: RecordSource
    examined: list[Examined]
    stored: Int64[np.ndarray, "256"] = field(init=False)  # pixels by stored value
    pixels: Int64[np.ndarray, " k"] = field(init=False)  # by class
    images: Int64[np.ndarray, " k"] = field(init=False)  # in which a class occurs

    def __post_init__(self) -> None:
        lookup = self.source.layout.lookup
        num_classes = self.source.spec.class_table.num_classes
        self.stored = np.zeros(256, np.int64)
        self.images = np.zeros(num_classes, np.int64)
        for examined in self.examined:
            values = np.array(list(examined.stored), np.intp)
            self.stored[values] += np.array(list(examined.stored.values()), np.int64)
            classes = np.unique(lookup[values])
            self.images[classes[classes < UNKNOWN]] += 1
        values = self.source.layout.class_values
        self.pixels = np.zeros(num_classes, np.int64)
        np.add.at(self.pixels, lookup[values], self.stored[values])

    def fraction(self, meaning: int) -> float:
        """Return the share of the pixels that are IGNORE or UNKNOWN."""
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
        """Return in one line whether a run can use the data."""
        if errors := self.count(ERROR):
            return f"{plural(errors, 'error')} to correct before training"
        warnings = self.count(WARNING)
        return f"no errors, {plural(warnings, 'warning')} to look at" if warnings else "valid"


def find_all(splits: dict[str, SplitScan], known: list[Finding]) -> list[Finding]:
    """Return the findings of all splits and the `known` ones, the severest first."""
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
        text = f"{plural(len(details), noun)} {text.format(form=form)}"
        if name == "unknown":
            ids = np.flatnonzero((scan.stored > 0) & (layout.lookup == UNKNOWN))
            text += f": {', '.join(map(str, ids))}"
            remedy = OWN_UNKNOWN + remedy if layout.name == "own" else remedy
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
    names = defaultdict(list)
    for one in scan.examined:
        if one.digest:
            names[one.digest].append(one.name)
    if groups := tuple(" = ".join(group) for group in names.values() if len(group) > 1):
        text = f"{plural(len(groups), 'image')} found more than once, pixel by pixel; keep one"
        yield Finding(WARNING, text, split, groups)


def _between(training: SplitScan, validation: SplitScan) -> Iterator[Finding]:
    names = training.source.spec.class_table.class_names
    unseen = np.flatnonzero((validation.pixels > 0) & (training.pixels == 0))
    if unseen.size:
        text = f"{plural(unseen.size, 'class')} in validation but not in training; no such pixel "
        yield Finding(WARNING, f"{text}can be right", locations=tuple(names[i] for i in unseen))
    by_digest = {one.digest: one.name for one in training.examined if one.digest}
    same = [(e.name, by_digest[e.digest]) for e in validation.examined if e.digest in by_digest]
    if same:
        text = f"{plural(len(same), 'validation image')} also in training, pixel by pixel; leave "
        yield Finding(ERROR, f"{text}it out of one split", locations=_pairs(same))
    rest = [one for one in validation.examined if one.digest not in by_digest]
    if alike := _look_alike(rest, training.examined):
        text = (
            f"{plural(len(dict(alike)), 'validation image')} almost like a training image: the "
            "same photograph, or neighbors in a video; the score may be too good"
        )
        yield Finding(WARNING, text, locations=_pairs(alike))


def _look_alike(some: list[Examined], others: list[Examined]) -> list[tuple[str, str]]:
    """Return the pairs of names whose difference hashes are within `NEAR` bits."""
    some, others = (
        # Nearly any two plain images have nearly the same hash.
        [e for e in group if e.digest and MIN_BITS <= e.dhash.bit_count() <= 64 - MIN_BITS]
        for group in (some, others)
    )
    hashes = np.array([e.dhash for e in others], np.uint64)
    return [
        (one.name, others[j].name)
        for one in some
        for j in np.flatnonzero(np.bitwise_count(hashes ^ np.uint64(one.dhash)) <= NEAR)
    ]


def _pairs(names: list[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(f"validation {one} = training {other}" for one, other in names)


def class_weights(pixels: Int64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
    """Return loss weights 1 / ln(1.02 + p) of classes whose share of the labeled pixels is p.

    From ENet (Paszke et al., 2016). Rare classes weigh more, none more than 36 times as much as
    another.

    Args:
        pixels: The number of pixels by class.

    Returns:
        Weights with mean 1 over the classes that occur; 1 for those that do not.
    """
    present = pixels > 0
    weights = 1 / np.log(1.02 + pixels / max(int(pixels.sum()), 1))
    if present.any():
        weights /= weights[present].mean()
    return np.where(present, weights, 1.0)


def weights_setting(pixels: Int64[np.ndarray, " k"]) -> str:
    """Return the suggested weights as an argument of `segret train`, safe in any shell."""
    weights = ",".join(f"{weight:.3f}" for weight in class_weights(pixels))
    return f"--config.train.class_weights={weights}"
