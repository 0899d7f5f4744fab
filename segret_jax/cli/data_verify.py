"""Compare prepared datasets with their manifests.

  segret data verify DATA_DIR

First the size and SHA-256 of every file, then every record by its own checksum. Exit status: 0 if
all is as written, 1 if not; each fault is named.
"""

import sys
from pathlib import Path

from segret_jax.cli import arguments as cli
from segret_jax.errors import InputError


def main(argv: list[str]) -> None:
    """Verify what is below the folder that `argv` names; exit with status 1 if it is damaged."""
    parser = cli.Parser("data verify", __doc__, has_settings=False)
    parser.add_argument("folder", help="DATA_DIR, DATA_DIR/NAME or the folder itself")
    where = parser.parse_args(argv).folder
    if "://" in where:
        raise InputError(f"{where} is remote; its files are checked when they are copied")

    from segret_jax.data.shards.verify import find_folders, verify

    top = Path(where).expanduser().absolute()
    folders = find_folders(top)
    if not folders:
        raise InputError(f"there is no prepared dataset in {top}")
    faulty = False
    for folder in folders:
        try:
            faults = verify(folder)
        except InputError as error:
            faults = [str(error)]
        faulty |= bool(faults)
        print(*faults or [f"{folder}: as it was written"], sep="\n")
    if faulty:
        sys.exit(1)
