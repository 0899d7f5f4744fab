"""Check prepared datasets against their manifests: segret data verify DATA_DIR.

First the size and SHA-256 of every file, then every record by its own checksum. Exit status: 0 if
all is as written, 1 if not; each fault is named.
"""

from pathlib import Path

from tqdm import tqdm

from segret_jax.data.lfs import refuse_pointer
from segret_jax.data.shards.manifest import MANIFEST, Manifest, read_manifest, stored_file
from segret_jax.data.shards.prepared import StoredRecords
from segret_jax.errors import InputError


def verify(folder: Path) -> list[str]:
    """Return the faults of the prepared dataset in `folder`, one line each.

    Raises:
        InputError: The manifest is missing or damaged.
    """
    manifest = read_manifest(folder)
    faults = _faulty_files(folder, manifest)
    if not any(str(folder / name) in fault for name in manifest.small_files for fault in faults):
        for split in manifest.splits:
            records = StoredRecords(folder, split)
            count = len(records.names)
            for index in tqdm(range(count), desc=split, unit="record", dynamic_ncols=True):
                try:
                    records.read(index)
                except InputError as error:
                    faults.append(str(error).split(";")[0])
    return faults


def _faulty_files(folder: Path, manifest: Manifest) -> list[str]:
    faults = []
    for name, written in tqdm(manifest.files.items(), "files", unit="file", dynamic_ncols=True):
        path = folder / name
        try:
            refuse_pointer(path, str(path))
            now = stored_file(path)
        except FileNotFoundError:
            faults.append(f"{path}: no such file")
        except InputError as error:
            faults.append(str(error))
        else:
            if now != written:
                faults.append(f"{path}: is {now}, not {written} as it was written")
    return faults


def find_folders(top: Path) -> list[Path]:
    """Return the folders below `top`, or itself, that `prepare` wrote or began to write."""
    if (top / MANIFEST).is_file():
        return [top]
    written = [
        path.parent
        for name in (MANIFEST, "dataset_info.json")  # one of them may be lost
        for path in (*top.glob(f"*/{name}"), *top.glob(f"*/*/{name}"))
    ]
    return sorted({*written, *top.glob("incomplete.*"), *top.glob("*/incomplete.*")})
