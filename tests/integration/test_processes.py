"""Two and four real processes train, save, stop, go on and evaluate as one process does."""

import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from segret_jax.errors import InputError
from segret_jax.parallel import processes
from tests.integration import runner
from tests.integration.stress import newest
from tests.runs import leaves, records
from tests.training.test_mesh import assert_close

STEPS = 6
# What Gloo says on stderr, in pieces: its threads write between each other's.
GLOO = "[Gloo] Rank is connected to peer ranks. Expected number of connected peer ranks is"


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        return opened.getsockname()[1]


def run(workdir: Path, count: int, *args: Any, last: tuple[Any, ...] = ()) -> list[str]:
    """Run `count` processes, the last of them with further arguments."""
    at, running = f"{count}@localhost:{free_port()}", []
    for i in range(count):
        further = last if i == count - 1 else ()
        spec = ("--processes", f"{i}/{at}") if count > 1 else ()
        running.append(runner.start(workdir, "--steps", STEPS, *spec, *args, *further))
    return runner.finish(running)


def assert_same_training(a: Path, b: Path) -> None:
    """To the tolerance that is stated for other meshes."""
    losses = [[r["loss"] for r in records(w) if r["kind"] == "train"] for w in (a, b)]
    assert len(losses[0]) == STEPS
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    expected, found = (by_parameter(leaves(w, STEPS)) for w in (a, b))
    assert expected.keys() == found.keys()
    for means in [name for name in expected if re.search(r"norms?(/\d+)?/mean$", name)]:
        # After so few steps a running mean has not caught up with the bias that it follows.
        del expected[means], found[means]
    assert_close(found, expected, where=str(b))


def by_parameter(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a checkpoint's arrays by path."""
    paths = [re.findall(r"\w+", name.removeprefix("model")) for name in stored]
    keys = [tuple(int(key) if key.isdigit() else key for key in path) for path in paths]
    tree = unflatten_dict(dict(zip(keys, stored.values(), strict=True)))
    return {"/".join(map(str, path)): x for path, x in flatten_dict(tree).items()}


def scores(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "metrics.json").read_text())


@pytest.mark.slow
def test_two_and_four_processes_give_one_process_s_numbers(tmp_path):
    alone, two, changing = (tmp_path / name for name in ("alone", "two", "changing"))
    run(alone, 1, "--devices", 4)
    printed = run(two, 2, "--devices", 2)
    assert "4 x cpu in 2 processes" in printed[0]
    assert "mIoU" in printed[0]
    words = re.compile(r"[^\W\d]+")
    assert set(words.findall(printed[1])) <= set(words.findall(GLOO))  # one speaks for all
    assert_same_training(alone, two)

    # Told to stop by a signal to one of four, which is at its third step: all stop at the same one.
    printed = run(changing, 4, last=("--stop-at", 3))
    assert "stopped at step 5, saved in" in printed[0]
    assert (changing / "status").read_text() == "stopped\n"
    # Two go on, each with two devices, the parameters split over all four.
    printed = run(changing, 2, "--devices", 2, "--fsdp", 4)
    assert "continuing at step 5" in printed[0]
    assert (changing / "status").read_text() == "finished\n"
    assert_same_training(alone, changing)

    expected = scores(alone)
    for workdir in (two, changing):
        found = scores(workdir)
        assert found["num_images"] == expected["num_images"] == 6
        assert abs(found["mIoU"] - expected["mIoU"]) < 0.01
        labels, theirs = (np.load(w / "per_image.npz")["label_area"] for w in (workdir, alone))
        np.testing.assert_array_equal(labels, theirs)  # every image once, in its place

    # eval.py, in four processes and in one, on what is left.
    printed = run(two, 4, "--evaluate")
    found = json.loads((two / "evaluation" / "metrics.json").read_text())
    assert "mIoU" in printed[0]
    assert not any("mIoU" in others for others in printed[1:])
    run(two, 1, "--evaluate", "--devices", 4)
    alone = json.loads((two / "evaluation" / "metrics.json").read_text())
    assert found["num_images"] == alone["num_images"] == 6
    assert abs(found["mIoU"] - alone["mIoU"]) < 1e-6


@pytest.mark.slow
def test_a_dead_process_ends_all_and_damage_in_one_s_share_is_found(tmp_path):
    workdir, whole = tmp_path / "run", tmp_path / "whole"
    at, split = f"2@localhost:{free_port()}", ("--fsdp", 2)
    args = ("--steps", STEPS, "--save-every", 2, "--pause", 1, *split)
    running = [runner.start(workdir, *args, "--processes", f"{i}/{at}") for i in range(2)]
    while newest(workdir) < 4:
        assert all(process.poll() is None for process in running)
        time.sleep(0.05)
    running[1].kill()
    try:
        for process in running:
            process.communicate(timeout=180)
    finally:
        running[0].kill()
    assert running[0].returncode != 0  # which tells the launcher to start again
    assert (workdir / "status").read_text() != "finished\n"
    for file in (workdir / "checkpoints/4/model/ocdbt.process_1/d").iterdir():
        file.write_bytes(bytes(file.stat().st_size))  # the second process's share alone
    printed = run(workdir, 2, *split)
    assert re.search(r"checkpoints/4 is damaged .*: moved to .*damaged_checkpoint_4", printed[0])
    assert "continuing at step 2" in printed[0]
    run(whole, 2, *split)
    expected, found = leaves(whole, STEPS), leaves(workdir, STEPS)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def test_a_malformed_processes_flag_is_refused():
    for spec in ("2", "2/2@host:1", "0/2@host", "x/2@host:1"):
        with pytest.raises(InputError, match=r"--processes is .* such as 0/2@node1:9876"):
            processes.start(spec)


def test_auto_without_a_cluster_is_refused(tmp_path):
    process = runner.start(tmp_path / "run", "--processes", "auto")
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert re.fullmatch(r"error: --processes auto: .*coordinator_address.*\n", printed)


def test_one_process_gathers_what_it_gives():
    assert processes.gather(b"abc") == [b"abc"]
