"""The package from an sdist, a wheel and an editable install, used from an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from segret_jax import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BUILD = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


def run(*command: object, cwd: Path) -> str:
    """Run a command outside of the checkout; return what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, text=True, capture_output=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The checkout, its sdist, and the wheel that is made of the sdist alone."""
    folder = tmp_path_factory.mktemp("build")
    listed = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "checkout" / name)
    sdist = run(sys.executable, "-c", BUILD, "build_sdist", folder, cwd=folder / "checkout")
    with tarfile.open(folder / sdist.split()[-1]) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    wheel = run(sys.executable, "-c", BUILD, "build_wheel", folder, cwd=unpacked)
    return {
        "editable": folder / "checkout",
        "sdist": folder / sdist.split()[-1],
        "wheel": folder / wheel.split()[-1],
    }


def installed(source: Path, folder: Path, *options: str) -> Path:
    """Install into an environment that has our dependencies; return its folder of programs."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    dependencies = folder / "lib" / version / "site-packages" / "dependencies.pth"
    dependencies.write_text(sysconfig.get_path("purelib") + "\n")
    run(
        sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--no-deps",
        "--no-index", "--no-build-isolation", *options, source, cwd=folder.parent,
    )  # fmt: skip
    return folder / "bin"


@pytest.mark.parametrize("kind", ["editable", "sdist", "wheel"])
def test_an_install_works_from_an_empty_folder(built, tmp_path, kind):
    options = ("--editable",) if kind == "editable" else ()
    programs = installed(built[kind], tmp_path / "environment", *options)
    empty = tmp_path / "empty"
    empty.mkdir()
    segret, python = programs / "segret", programs / "python"
    assert run(segret, "--version", cwd=empty) == f"segret_jax {__version__}\n"
    place = run(python, "-c", "import segret_jax; print(segret_jax.__file__)", cwd=empty)
    assert str(built["editable"] if kind == "editable" else tmp_path) in place
    code = "from segret_jax.cli.arguments import shipped_configs; print(*shipped_configs())"
    names = run(python, "-c", code, cwd=empty).split()
    assert names == sorted(file.stem for file in (ROOT / "configs").glob("*.py"))


def test_a_wheel_of_the_sdist_holds_every_file_of_the_package(built):
    """A demo with it, in a clean environment, is `scripts/try_wheel.sh`."""
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = run("git", "ls-files", "-z", "segret_jax", cwd=ROOT).split("\0")
        assert {*wheel.namelist()} >= {*filter(None, names)}
