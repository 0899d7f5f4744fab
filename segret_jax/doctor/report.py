"""The label doctor's report: on the terminal, as an HTML file with pictures, and findings.json."""

import base64
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from segret_jax.data.class_table import IGNORE, UNKNOWN, ClassTable
from segret_jax.data.decode import decode_label, decode_turned
from segret_jax.data.folders import plural
from segret_jax.data.orientation import fit_label
from segret_jax.doctor.examine import Examined
from segret_jax.doctor.findings import Diagnosis, Finding, SplitScan, class_weights, weights_setting
from segret_jax.visualize.pictures import overlay

PICTURES = 8  # worst samples of each split, and as many random ones
WIDTH = 420  # pixels of each half of a picture, which is at most twice as high
LISTED = 50  # locations of a finding in the HTML file; findings.json has all
SHOWN = 3  # on the terminal
HIGHLIGHT = (255, 0, 255)
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }
td, th { padding: .2em .7em; text-align: left; vertical-align: top; }
.error { color: #b00020; } .warning { color: #8a5a00; } .note { color: #555; }
.valid { color: #1b6e2f; } .verdict { font-size: 1.3em; font-weight: bold; }
.swatch { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 .8em; }
figure { display: inline-block; margin: 0 1em 1.5em 0; width: 840px; max-width: 100%; }
figure img { max-width: 100%; } pre { white-space: pre-wrap; }
"""


def summary(diagnosis: Diagnosis) -> str:
    """Format the findings for the terminal."""
    lines = [""]
    training = diagnosis.scans.get("training")
    if training and np.count_nonzero(training.pixels) > 1:
        lines.append("Class weights that balance the classes, to add to the command of training:")
        lines += [weights_setting(training.pixels), ""]
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
    severity = next((finding.severity for finding in diagnosis.findings), "valid")  # the worst
    title = f"Label check of {escape(diagnosis.spec.name)}"
    parts = [
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>",
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>",
        f"<p class='verdict {severity}'>{escape(diagnosis.verdict())}</p>",
        f"<p>{escape(diagnosis.root)}</p>",
        _splits(diagnosis.scans),
        "<h2>Findings</h2>",
        _findings(diagnosis.findings),
        "<h2>Classes</h2>",
        _classes(diagnosis),
        _weights(diagnosis.scans.get("training")),
    ]
    for split, scan in diagnosis.scans.items():
        worst, others = choose_samples(scan, seed=seed)
        for title, samples in (("Faults and most ignored pixels", worst), ("At random", others)):
            if samples:
                parts += [f"<h2>{title}: {split}</h2>", *(_figure(scan, e) for e in samples)]
    return "\n".join([*parts, "</body></html>\n"])


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    body = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows)
    return f"<table><tr><th>{'</th><th>'.join(header)}</th></tr>{body}</table>"


def _splits(scans: dict[str, SplitScan]) -> str:
    rows = []
    for split, scan in scans.items():
        layout = f"{scan.source.layout.name}: {scan.source.layout.describe(split)}"
        fractions = (f"{scan.fraction(meaning):.2%}" for meaning in (IGNORE, UNKNOWN))
        pairs, pixels = str(len(scan.source)), f"{scan.stored.sum():,}"
        rows.append((split, escape(layout), pairs, pixels, *fractions))
    return _table(("split", "layout", "pairs", "pixels", "ignored", "outside the table"), rows)


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<p>Nothing was found.</p>"
    rows = [
        (f"<b class='{f.severity}'>{f.severity}</b>", f.split, escape(f.message) + _locations(f))
        for f in findings
    ]
    return _table(("severity", "split", "finding"), rows)


def _locations(finding: Finding) -> str:
    if not finding.locations:
        return ""
    items = "".join(f"<li>{escape(location)}</li>" for location in finding.locations[:LISTED])
    count = f"{len(finding.locations)} (all in findings.json)"
    return f"<details><summary>{count}</summary><ul>{items}</ul></details>"


def _classes(diagnosis: Diagnosis) -> str:
    table, scans = diagnosis.spec.class_table, diagnosis.scans
    columns = (name for split in scans for name in (f"{split}: pixels", "images"))
    rows = []
    for i, name in enumerate(table.class_names):
        cells = [str(i), f"{_swatch(table, i)}{escape(name)}"]
        for scan in scans.values():
            fraction = scan.pixels[i] / max(int(scan.pixels.sum()), 1)
            cells += [f"{fraction:.3%}", str(scan.images[i])]
        rows.append(cells)
    text = "<p>Share of the pixels that have a class, and images in which it occurs.</p>"
    return text + _table(("id", "class", *columns), rows)


def _weights(training: SplitScan | None) -> str:
    if training is None:
        return ""
    text = "With these, rare classes count more in the loss. An argument of segret train:"
    setting = escape(weights_setting(training.pixels))
    return f"<h2>Suggested class weights</h2><p>{text}</p><pre>{setting}</pre>"


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


def _figure(scan: SplitScan, examined: Examined) -> str:
    record = scan.source.record(examined.index)
    table = scan.source.spec.class_table
    raw = decode_label(record.label, where=record.label_path)
    image, orientation = decode_turned(record.image, where=record.image_path)
    label = fit_label(scan.source.layout.lookup[raw], image.shape[:2], orientation)
    picture = sample_picture(image, label, table)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode()
    counts = np.bincount(label.ravel(), minlength=256)
    classes = [i for i in np.argsort(-counts[: table.num_classes])[:12].tolist() if counts[i]]
    legend = "".join(f"{_swatch(table, i)}{escape(table.class_names[i])}" for i in classes)
    ignored = f"{counts[IGNORE] / label.size:.1%} ignored"
    faults = "".join(
        f"<br><span class='error'>{escape(fault.detail)}</span>" for fault in examined.faults
    )
    return (
        f"<figure><img src='data:image/jpeg;base64,{data}' alt='{escape(record.name)}'>"
        f"<figcaption><b>{escape(record.name)}</b>, {ignored}{legend}{faults}</figcaption></figure>"
    )


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


def _swatch(table: ClassTable, i: int) -> str:
    color = bytes(table.colors[i]).hex()
    return f"<span class='swatch' style='background:#{color}'></span>"
