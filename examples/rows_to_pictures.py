"""Write the label maps of `segret predict --ray` as PNG files.

python examples/rows_to_pictures.py ROWS PICTURES
"""

import re
import sys
from pathlib import Path

import pyarrow.parquet as pq


def main(rows: str, pictures: str) -> None:
    """Write PICTURES/FOLDERS/NAME.png for each row without an error."""
    for file in sorted(Path(rows).glob("*.parquet")):
        for row in pq.read_table(file, columns=["path", "label"]).to_pylist():
            parts = [part for part in re.split(r"[:/\\]+", row["path"]) if part.strip(".")]
            target = Path(pictures, *parts).with_name(f"{parts[-1]}.png")
            if row["label"]:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(row["label"])


if __name__ == "__main__":
    main(*sys.argv[1:])
