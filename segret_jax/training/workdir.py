"""The folder of a run: whose it is, and what has become of the run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segret_jax import config as configs
from segret_jax import processes
from segret_jax.config import Config
from segret_jax.errors import InputError
from segret_jax.files import write_whole, writing

STATUS = "status"

# Settings that may differ between the start of a run and its continuation.
MAY_CHANGE = (
    "data.root", "data.workers", "data.on_error", "train.log_every", "train.eval_every",
    "train.save_every", "train.keep_checkpoints", "train.max_bad_steps", "eval.pictures",
    "eval.batch_size", "model.max_scores", "model.remat", "mesh.data", "mesh.fsdp",
)  # fmt: skip


def claim(workdir: Path, config: Config) -> None:
    """Make `workdir` this config's folder, or refuse one that holds another config's run."""
    if "://" in str(workdir):
        raise InputError(
            f"--workdir {workdir}: give a folder; a bucket is mounted first (gcsfuse, s3fs)"
        )
    with writing(f"to --workdir {workdir}"):
        processes.check_shared(workdir)
    if processes.is_first():
        _claim(workdir, config)
    processes.wait_for_all("workdir claimed")


def _claim(workdir: Path, config: Config) -> None:
    saved = workdir / "config.json"
    if saved.exists():
        theirs, ours = configs.flatten(configs.load(saved)), configs.flatten(config)
        different = [k for k in ours if theirs[k] != ours[k] and k not in MAY_CHANGE]
        if different:
            listed = ", ".join(f"{k} ({theirs[k]} there, {ours[k]} here)" for k in different)
            raise InputError(
                f"{workdir} holds a run of another config: {listed}. "
                "Choose another --workdir, or delete that folder"
            )
    with writing(f"to --workdir {workdir}"):
        (workdir / "pictures").mkdir(parents=True, exist_ok=True)
        configs.save(config, saved)


@contextmanager
def status_of(workdir: Path) -> Iterator[Callable[[str], None]]:
    """Keep a file `status` for schedulers: running, finished, stopped or failed, in one word.

    Yields what to call with `finished` or `stopped`. A run that was killed leaves `running`.
    """

    def write(word: str) -> None:
        if processes.is_first():
            with suppress(OSError):  # a full disk is told where it matters
                write_whole(workdir / STATUS, word + "\n")

    write("running")
    try:
        yield write
    except BaseException:
        write("failed")
        raise
