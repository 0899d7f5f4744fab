"""Download the wheels that a machine with PyTorch and JAX, but no network, lacks.

    python scripts/gpu_wheels.py [--out .gpu/wheels] [--python 3.12] [NAME ...]

Versions are those of requirements.txt and requirements-dev.txt. Installed there:

    python3 -m pip install --no-index --no-deps --target .gpu/site .gpu/wheels/*.whl
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What `benchmarks.gpu` and `benchmarks.gpu_train` import, beside what such machines have: NumPy,
# SciPy, jax, jaxlib, ml_dtypes, jaxtyping, opencv, pillow, tensorstore, tqdm, protobuf and pytest.
LACKED = (
    "flax", "optax", "orbax-checkpoint", "grain", "array_record", "tensorboardX", "portpicker",
    "googleapis-common-protos",
)  # fmt: skip
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34, 35)]
LIMIT = 60 * 2**20  # bytes that small rented machines take in one transfer


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=LACKED, help="packages (default: as listed)")
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu" / "wheels")
    parser.add_argument("--python", default="3.12", help="version on that machine")
    args = parser.parse_args(argv)
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", args.python, "--dest", str(args.out)]
    for platform in (*PLATFORMS, "manylinux2014_x86_64"):
        command += ["--platform", platform]
    pins = pinned()
    unknown = [name for name in args.names if name not in pins]
    if unknown:
        sys.exit(f"error: {', '.join(unknown)}: not in requirements.txt or requirements-dev.txt")
    wanted = {normalized(name) for name in args.names}
    for wheel in args.out.glob("*.whl"):
        if normalized(wheel.name.split("-")[0]) in wanted:
            wheel.unlink()  # pip rejects two versions of one package
    subprocess.run([*command, *(pins[name] for name in args.names)], check=True)
    print(report(args.out))


def normalized(name: str) -> str:
    """Return the name of a project as PEP 503 compares it: tensorboardX's wheel is tensorboardx."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    """Return {name: "name==version"} of both requirements files."""
    files = (ROOT / "requirements.txt", ROOT / "requirements-dev.txt")
    lines = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return {match[1]: match[0] for match in re.finditer(r"^([\w.-]+)==[\w.]+", lines, re.MULTILINE)}


def report(wheels: Path) -> str:
    """Return the sizes of what travels, in words."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    names = subprocess.run([*listed, "--exclude-standard"], check=True, capture_output=True)
    code = [ROOT / name for name in names.stdout.decode().split("\0") if name]
    sizes = {
        "code": sum(file.stat().st_size for file in code if file.is_file()),
        "wheels": size_of(wheels),
        "CamVid": size_of(ROOT / ".gpu" / "camvid"),
    }
    total = sum(sizes.values())
    words = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items())
    verdict = "within" if total <= LIMIT else "MORE THAN"
    return f"{words}; together {total / 2**20:.1f} MiB, {verdict} {LIMIT / 2**20:.0f} MiB"


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main(sys.argv[1:])
