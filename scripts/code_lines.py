"""Count lines of code, without docstrings, comments and blank lines.

    python scripts/code_lines.py [FOLDER ...]

Prints the lines of each folder (default: segret_jax) and names functions of more than 50 lines and
files of more than 300; exits with 1 if there is one.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

MAX_IN_FUNCTION, MAX_IN_FILE = 50, 300
LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip


def code_lines(source: str) -> set[int]:
    """Return the numbers of the lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        for text in _strings(node):
            lines -= set(range(text.lineno, text.end_lineno + 1))
    return lines


def _strings(node: ast.AST) -> list[ast.Expr]:
    """Return the docstrings in a body: of what holds it, and of the attributes in it."""
    body = getattr(node, "body", [])
    return [
        one
        for one in (body if isinstance(body, list) else [])
        if isinstance(one, ast.Expr)
        and isinstance(one.value, ast.Constant)
        and isinstance(one.value.value, str)
    ]


def oversized(file: Path) -> list[str]:
    """Name the functions of a file that are too long, and the file if it is."""
    source = file.read_text(encoding="utf-8")
    lines = code_lines(source)
    found = [f"{file}: {len(lines)} lines"] if len(lines) > MAX_IN_FILE else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = sum(node.lineno <= line <= node.end_lineno for line in lines)
            if count > MAX_IN_FUNCTION:
                found.append(f"{file}: {node.name} has {count} lines")
    return found


def main(folders: list[str]) -> int:
    """Print the counts; return the exit status."""
    too_long = []
    if missing := [folder for folder in folders if not Path(folder).is_dir()]:
        sys.exit(f"no folder {', '.join(missing)}")
    for folder in folders or ["segret_jax"]:
        files = sorted(Path(folder).rglob("*.py"))
        total = sum(len(code_lines(file.read_text(encoding="utf-8"))) for file in files)
        print(f"{folder}: {total} lines in {len(files)} files")
        too_long += [line for file in files for line in oversized(file)]
    limits = f"functions of more than {MAX_IN_FUNCTION} lines, files of more than {MAX_IN_FILE}: "
    print(limits + ("none" if not too_long else "\n" + "\n".join(too_long)))
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
