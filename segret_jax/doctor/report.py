"""The label doctor's report: on the terminal, as an HTML file with pictures, and findings.json."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from segret_jax.data.class_table import IGNORE, UNKNOWN, ClassTable
from segret_jax.data.decode import decode_label, decode_turned
from segret_jax.data.folders import plural
from segret_jax.data.orientation import fit_label
from segret_jax.doctor.examine import Examined
from segret_jax.doctor.findings import (
    ERROR,
    SEVERITIES,
    Diagnosis,
    SplitScan,
    class_weights,
    weights_setting,
)
from segret_jax.pages import page
from segret_jax.visualize.pictures import encode_jpeg, overlay

PICTURES = 8  # worst samples of each split, and as many random ones
WIDTH = 420  # pixels of each half of a picture, which is at most twice as high
LISTED = 50  # locations of a finding in the HTML file; findings.json has all
SHOWN = 3  # on the terminal
HIGHLIGHT = (255, 0, 255)


def summary(diagnosis: Diagnosis) -> str:
    """Format the findings for the terminal."""
    lines = [""]
    if weights := _suggested_weights(diagnosis):
        lines += ["Balanced class weights, to add to segret train:", weights, ""]
    for split, scan in diagnosis.scans.items():
        pairs = plural(len(scan.source), "pair")
        lines.append(f"{diagnosis.spec.name} {split}: {pairs}, layout {scan.source.layout.name}")
    for finding in diagnosis.findings:
        where = f"{finding.split}: " if finding.split else ""
        lines.append(f"{finding.severity:8}{where}{finding.message}")
        lines += [f"          {location}" for location in finding.locations[:SHOWN]]
        if len(finding.locations) > SHOWN:
            lines.append(f"          ... and {len(finding.locations) - SHOWN} more")
    return "\n".join([*lines, "", f"{diagnosis.spec.name}: {diagnosis.verdict()}"])


def _suggested_weights(diagnosis: Diagnosis) -> str:
    """Return the class weights as an argument; none of labels with errors or of one class."""
    training = diagnosis.scans.get("training")
    if diagnosis.count(ERROR) or not training or np.count_nonzero(training.pixels) < 2:
        return ""
    return weights_setting(training.pixels)


def write_report(diagnosis: Diagnosis, folder: Path, *, seed: int) -> None:
    """Write index.html and findings.json into `folder`, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(html(diagnosis, seed=seed), encoding="utf-8")
    content = json.dumps(to_dict(diagnosis), indent=1)
    (folder / "findings.json").write_text(content + "\n", encoding="utf-8")


def to_dict(diagnosis: Diagnosis) -> dict[str, object]:
    """Return the findings and statistics as JSON values."""
    training = diagnosis.scans.get("training")
    return {
        "dataset": diagnosis.spec.name,
        "root": diagnosis.root,
        "verdict": diagnosis.verdict(),
        "findings": [dataclasses.asdict(finding) for finding in diagnosis.findings],
        "splits": {
            split: {
                "layout": scan.source.layout.name,
                "pairs": len(scan.source),
                "ignored_share": scan.fraction(IGNORE),
                "pixels_by_stored_value": {
                    str(value): int(scan.stored[value]) for value in np.flatnonzero(scan.stored)
                },
                "pixels_by_class": scan.pixels.tolist(),
                "images_by_class": scan.images.tolist(),
            }
            for split, scan in diagnosis.scans.items()
        },
        "class_names": list(diagnosis.spec.class_table.class_names),
        "class_weights": class_weights(training.pixels).tolist() if training else None,
    }


def html(diagnosis: Diagnosis, *, seed: int) -> str:
    """Return the report as one page that needs no other file."""
    table, samples = diagnosis.spec.class_table, []
    for split, scan in diagnosis.scans.items():
        worst, others = choose_samples(scan, seed=seed)
        for title, shown in (("Faults and most ignored pixels", worst), ("At random", others)):
            if shown:
                figures = [_figure(scan, one) for one in shown]
                samples.append({"title": f"{title}: {split}", "figures": figures})
    return page.render(
        "label_check.html",
        title=f"Label check of {diagnosis.spec.name}",
        severity=next((one.severity for one in diagnosis.findings), "valid"),  # the worst
        verdict=diagnosis.verdict(),
        root=diagnosis.root,
        tiles=_tiles(diagnosis),
        findings=diagnosis.findings,
        listed=LISTED,
        splits=[_split_row(split, scan) for split, scan in diagnosis.scans.items()],
        split_names=[*diagnosis.scans],
        classes=[_class_row(diagnosis, i) for i in range(table.num_classes)],
        weights=_suggested_weights(diagnosis),
        samples=samples,
    )


def _tiles(diagnosis: Diagnosis) -> list[dict[str, str]]:
    """Return the headline numbers."""
    scans = diagnosis.scans.values()
    pairs = sum(len(scan.source) for scan in scans)
    splits = ", ".join(f"{len(scan.source):,} {split}" for split, scan in diagnosis.scans.items())
    counts = [(f"{severity}s", str(diagnosis.count(severity)), "") for severity in SEVERITIES]
    found = np.sum([scan.images for scan in scans], axis=0) > 0
    classes = f"{np.count_nonzero(found)} of {diagnosis.spec.class_table.num_classes}"
    rows = [("pairs", f"{pairs:,}", splits), *counts, ("classes", classes, "occur in labels")]
    return [{"name": name, "value": value, "detail": detail} for name, value, detail in rows]


def _split_row(split: str, scan: SplitScan) -> tuple[str, ...]:
    layout = f"{scan.source.layout.name}: {scan.source.layout.describe(split)}"
    fractions = (f"{scan.fraction(meaning):.2%}" for meaning in (IGNORE, UNKNOWN))
    return split, layout, f"{len(scan.source):,}", f"{scan.stored.sum():,}", *fractions


def _class_row(diagnosis: Diagnosis, i: int) -> tuple[str, str, list[tuple[str, float, int]]]:
    """Return color, name and, by split, the share of pixels, its bar in percent, and images."""
    table, fractions = diagnosis.spec.class_table, []
    for scan in diagnosis.scans.values():
        fraction = scan.pixels[i] / max(int(scan.pixels.sum()), 1)
        most = max(int(scan.pixels.max()), 1)
        fractions.append(
            (f"{fraction:.3%}", round(100 * scan.pixels[i] / most, 1), int(scan.images[i]))
        )
    return _color(table, i), table.class_names[i], fractions


def choose_samples(scan: SplitScan, *, seed: int) -> tuple[list[Examined], list[Examined]]:
    """Return the worst samples, the worst first, and random others; `seed` draws them.

    Ranks by faults, then pixels outside the table, then ignored pixels. Leaves out samples that
    cannot be decoded.
    """
    shown = [e for e in scan.examined if e.digest and e.stored]
    lookup = scan.source.layout.lookup

    def rank(examined: Examined) -> tuple[bool, float, float]:
        values = np.array(list(examined.stored))
        pixels = np.array(list(examined.stored.values()))
        fractions = pixels / pixels.sum()
        unknown, ignored = (fractions[lookup[values] == m].sum() for m in (UNKNOWN, IGNORE))
        wrong = any(fault.kind in ("unknown", "sizes", "exif_unclear") for fault in examined.faults)
        return wrong, float(unknown), float(ignored)

    ranked = sorted(shown, key=rank, reverse=True)
    worst = [e for e in ranked[:PICTURES] if any(rank(e))]
    others = ranked[len(worst) :]
    chosen = np.random.default_rng(seed).permutation(len(others))[:PICTURES]
    return worst, [others[i] for i in chosen]


def _figure(scan: SplitScan, examined: Examined) -> dict[str, Any]:
    """Return what the page shows of a sample."""
    record = scan.source.record(examined.index)
    table = scan.source.spec.class_table
    raw = decode_label(record.label, where=record.label_path)
    image, orientation = decode_turned(record.image, where=record.image_path)
    label = fit_label(scan.source.layout.lookup[raw], image.shape[:2], orientation)
    content = encode_jpeg(sample_picture(image, label, table), quality=82)
    counts = np.bincount(label.ravel(), minlength=256)
    classes = [i for i in np.argsort(-counts[: table.num_classes])[:12].tolist() if counts[i]]
    return {
        "picture": page.data_uri(content, "jpeg"),
        "name": record.name,
        "ignored": f"{counts[IGNORE] / label.size:.1%}",
        "faults": [fault.detail for fault in examined.faults],
        "legend": [(_color(table, i), table.class_names[i]) for i in classes],
    }


def sample_picture(
    image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "lh lw"], table: ClassTable
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Draw an image beside the same under its label, each scaled to fit `WIDTH` x 2 `WIDTH`.

    Ignored pixels are dark; ids outside the table (UNKNOWN) are bright and dilated. A label of
    another size is stretched.
    """
    height, width = image.shape[:2]
    scale = min(WIDTH / width, 2 * WIDTH / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    classes = np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))
    unknown = Image.fromarray(np.where(label == UNKNOWN, np.uint8(255), np.uint8(0)))
    reduced = np.asarray(unknown.convert("F").resize(size, Image.Resampling.BOX)) > 0
    grown = Image.fromarray(reduced).convert("L").filter(ImageFilter.MaxFilter(5))
    mixed = overlay(small, classes, table)
    mixed[np.asarray(grown) > 0] = HIGHLIGHT
    return np.concatenate([small, mixed], axis=1)


def _color(table: ClassTable, i: int) -> str:
    return "#" + bytes(table.colors[i]).hex()
