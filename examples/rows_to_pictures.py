"""Write the label maps of `segret predict --ray` as PNG files.

python examples/rows_to_pictures.py ROWS PICTURES
"""

import re
import sys
from pathlib import Path

import pyarrow.parquet as pq


def main(rows: str, pictures: str) -> None:
    """Write PICTURES/FOLDERS/NAME.png for each row without an error."""
    count = failed = 0
    for file in sorted(Path(rows).glob("*.parquet")):
        for row in pq.read_table(file, columns=["path", "label"]).to_pylist():
            parts = [part for part in re.split(r"[:/\\]+", row["path"]) if part.strip(".")]
            target = Path(pictures, *parts).with_name(f"{parts[-1]}.png")
            if row["label"] is None:
                failed += 1
            else:
                count += 1
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(row["label"])
    print(f"{count} label maps below {pictures}, {failed} rows with an error left out")


if __name__ == "__main__":
    main(*sys.argv[1:])
