"""The file of results: one JSON line per figure, on the disk as soon as the figure is known."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def append(file: Path, figure: str, values: dict[str, Any]) -> None:
    """Write a figure's line and wait until the disk has it.

    Several processes may append at the same time. A line that a killed process left unfinished
    stays on a line of its own.
    """
    line = json.dumps({"figure": figure, **values}) + "\n"
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, ("\n" * torn + line).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(file: Path) -> list[dict[str, Any]]:
    """Return all complete lines, oldest first; none if there is no file."""
    found = []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:  # of a process that was killed while it wrote
            continue
        if isinstance(values, dict) and "figure" in values:
            found.append(values)
    return found


def known(lines: list[dict[str, Any]], *, dry_run: bool) -> dict[str, dict[str, Any]]:
    """Return {figure: its newest line}, but for errors and what was wrong: to be measured again."""
    found = newest(lines, dry_run=dry_run)
    return {figure: line for figure, line in found.items() if line.get("ok") is not False}


def newest(lines: list[dict[str, Any]], *, dry_run: bool) -> dict[str, dict[str, Any]]:
    """Return {figure: its newest line} of dry runs or of real ones, without errors."""
    return {
        line["figure"]: line
        for line in lines
        if "error" not in line and line.get("dry_run", False) == dry_run
    }


def commit() -> str:
    """Return the commit that is measured: git's, or SEGRET_COMMIT where there is no repository."""
    if named := os.environ.get("SEGRET_COMMIT"):
        return named
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
