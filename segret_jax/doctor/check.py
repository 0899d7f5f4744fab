"""The label check of a dataset: examine every pair and report the findings."""

import os
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from segret_jax.data.folders import FilePairs, find_pairs, hint, plural
from segret_jax.data.layouts import SPLITS, DatasetSpec
from segret_jax.data.listing import pictures_not_read
from segret_jax.data.shards.prepared import open_files
from segret_jax.data.sources import FolderSource, RecordSource
from segret_jax.doctor.examine import examine_all
from segret_jax.doctor.findings import ERROR, NOTE, Diagnosis, Finding, SplitScan, find_all
from segret_jax.errors import InputError


def check(
    spec: DatasetSpec, root: str | Path, *, split: str | None = None, workers: int = 0
) -> Diagnosis:
    """Examine the pairs of a dataset.

    Args:
        spec: The dataset.
        root: Its folder, or prepared dataset.
        split: "training" or "validation"; None means all that are there.
        workers: The number of processes; 0 means all cores.

    Raises:
        InputError: There is no split to examine.
    """
    sources, findings = _open_splits(spec, root, (split,) if split else SPLITS)
    scans = {}
    for name, source in sources.items():
        pairs = examine_all(source, workers=workers or os.cpu_count() or 1)
        examined = list(tqdm(pairs, name, len(source), unit="pair"))
        scans[name] = SplitScan(source=source, examined=examined)
    return Diagnosis(spec=spec, root=str(root), scans=scans, findings=find_all(scans, findings))


def _open_splits(
    spec: DatasetSpec, root: str | Path, splits: tuple[str, ...]
) -> tuple[dict[str, RecordSource], list[Finding]]:
    sources: dict[str, RecordSource] = {}
    findings, errors = [], []
    for split in splits:
        try:
            sources[split], unpaired = _open_split(spec, root, split)
            findings += unpaired
        except InputError as error:
            severity = ERROR if _has_folder(spec, Path(root).expanduser(), split) else NOTE
            findings.append(Finding(severity, f"not checked: {error}", split))
            errors.append(error)
    if not sources:
        raise errors[0]
    return sources, findings


def _open_split(
    spec: DatasetSpec, root: str | Path, split: str
) -> tuple[RecordSource, list[Finding]]:
    """Open a split as training does, but report files without a partner as findings."""
    try:
        source = open_files(spec, root, split)
    except InputError as error:
        try:
            source = FolderSource(spec, root, split, skip_unpaired=True)
        except InputError:
            raise error from None
    if not isinstance(source, FolderSource):
        return source, []
    pairs = find_pairs(spec, root, split)
    return source, [*_unpaired(pairs, split), *_not_read(pairs, split)]


def _unpaired(pairs: FilePairs, split: str) -> Iterator[Finding]:
    for kind, other, names in pairs.unpaired:
        folder = pairs.labels.folder if other == "label" else pairs.images.folder
        text = f"{plural(len(names), kind)} without {other} in {folder}{hint(pairs, other)}"
        yield Finding(ERROR, f"{text}; add the {other} or remove the {kind}", split, tuple(names))


def _not_read(pairs: FilePairs, split: str) -> Iterator[Finding]:
    """Yield a note on pictures beside the images that have another ending: HEIC, raw, and so on."""
    if others := pictures_not_read(pairs.images):
        where = f"in {pairs.images.folder} without the ending {pairs.images.suffix}"
        message = f"{plural(len(others), 'picture')} {where}, not read; convert or leave"
        yield Finding(NOTE, message, split, tuple(others))


def _has_folder(spec: DatasetSpec, root: Path, split: str) -> bool:
    """Return whether a folder of just this split exists: then it is broken, not left out."""
    return any(
        (top / folder.format(split=layout.splits[split])).is_dir()
        for top in (root, root / spec.archive)
        for layout in spec.layouts
        for folder in (layout.images, layout.labels)
        if "{split}" in folder
    )
