"""train.py, eval.py and predict.py: one small run, and what can be done with it.

In this process, with the small model; CI's demo starts the same programs with SegRet-tiny itself.
"""

import contextlib
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from segret_jax.cli import compare as compare_cli
from segret_jax.cli import eval as eval_cli
from segret_jax.cli import predict as predict_cli
from segret_jax.cli import train as train_cli
from segret_jax.errors import InputError
from segret_jax.training import loop
from tests.conftest import small_models

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "data.synthetic_size=32,32", "data.synthetic_train=16", "data.synthetic_validation=4",
    "data.crop=32,32", "data.resize_base=32,32", "eval.resize_target=32,32", "eval.pictures=2",
    "train.batch_size=2", "train.steps=4", "train.eval_every=2", "train.log_every=1",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("mini")


def run(main: Callable[[list[str]], Any], *arguments: str | Path) -> str:
    """Call a program's `main` and return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([str(argument) for argument in arguments])
    return printed.getvalue()


def train(workdir: Path) -> str:
    settings = [f"--config.{setting}" for setting in SETTINGS]
    config = ROOT / "configs" / "demo.py"
    return run(train_cli.main, "--config", config, "--workdir", workdir, *settings)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def records(workdir: Path, kind: str) -> dict[int, dict[str, float]]:
    text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    lines = map(json.loads, text.splitlines())
    return {line["step"]: line for line in lines if line["kind"] == kind}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "demo"
    with small_models():
        printed = train(folder)
    (folder / "stdout.txt").write_text(printed, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def scores(workdir: Path) -> dict[str, Any]:
    """Its metrics.json, before anything else writes there."""
    return read_json(workdir / "metrics.json")


def test_a_run_leaves_numbers_pictures_checkpoints_and_its_config(workdir, scores):
    training, validation = records(workdir, "train"), records(workdir, "validation")
    assert list(training) == [1, 2, 3, 4]
    for record in training.values():
        assert 0 < record["loss"] < 10
        assert 0 <= record["accuracy"] <= 100
        assert 0 < record["learning_rate"] <= 1e-3
        assert record["step"] == 1 or record["steps_per_second"] > 0
        assert record["skipped_samples"] == 0
    assert list(validation) == [2, 4]
    assert scores["mIoU"] == validation[4]["mIoU"]
    assert (scores["num_images"], scores["complete"], scores["faults"]) == (4, True, [])

    checkpoints = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert checkpoints == {"2", "4"}
    assert read_json(workdir / "config.json")["data"]["crop"] == [32, 32]
    for step in (2, 4):
        with Image.open(workdir / "pictures" / f"step_{step:06d}.png") as picture:
            assert picture.size[0] > 3 * 300
    printed = (workdir / "stdout.txt").read_text(encoding="utf-8")
    assert f"step 4: mIoU {100 * scores['mIoU']:.2f}" in printed
    assert "| vehicle" in printed


def scalars(workdir: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard would show; its file is a row of length, 4 bytes, Event, 4 bytes."""
    (file,) = (workdir / "tensorboard").iterdir()
    content, found = file.read_bytes(), {}
    while content:
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        content = content[16 + length :]
    return found


def test_tensorboard_shows_the_same_numbers(workdir, scores):
    shown = scalars(workdir)
    for kind in ("train", "validation"):
        for step, record in records(workdir, kind).items():
            for name in record.keys() - {"kind", "step", "seconds"}:
                if record[name] is not None:  # the first step has no speed
                    assert shown[f"{kind}/{name}", step] == pytest.approx(record[name], rel=1e-6)


def test_a_finished_run_evaluates_again_and_changes_nothing(workdir, scores):
    assert "continuing at step 4" in train(workdir)
    assert read_json(workdir / "metrics.json") == scores
    assert list(records(workdir, "train")) == [1, 2, 3, 4]


def test_eval_gives_the_best_score_of_the_run_exactly(workdir, scores, tmp_path):
    validation = records(workdir, "validation")
    best = max(validation, key=lambda step: (validation[step]["mIoU"], step))
    printed = run(eval_cli.main, "--workdir", workdir, "--out", tmp_path, "--overlays")
    content = read_json(tmp_path / "metrics.json")
    assert content["mIoU"] == validation[best]["mIoU"]
    assert content["checkpoint"] == str(workdir / "checkpoints" / str(best))
    assert f"mIoU {100 * content['mIoU']:.2f}" in printed
    assert "4 images in 2 batches" in printed  # the forecast, for two devices
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.size[0] > 300
    overlays = sorted((tmp_path / "overlays").glob("*.png"))
    assert [path.stem for path in overlays] == [f"scene_{i:06d}" for i in range(4)]
    with Image.open(overlays[0]) as overlay:
        assert (overlay.size, overlay.mode) == ((32, 32), "RGB")


def compare(a: Path, b: Path) -> tuple[int, str]:
    status = 0
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            compare_cli.main([str(a / "metrics.json"), str(b / "metrics.json")])
        except SystemExit as end:
            status = end.code
    return status, printed.getvalue()


def test_results_are_compared_only_if_their_protocol_is_one(workdir, tmp_path):
    checkpoint = ("--checkpoint", workdir / "checkpoints" / "2")
    run(eval_cli.main, *checkpoint, "--out", tmp_path / "a")
    run(eval_cli.main, *checkpoint, "--out", tmp_path / "b", "--config.eval.flip=true")
    assert compare(tmp_path / "a", workdir)[0] == 0
    status, text = compare(tmp_path / "a", tmp_path / "b")
    assert status == 1
    assert "flip: A False, B True" in text


def test_other_classes_than_the_checkpoints_are_refused(workdir):
    with pytest.raises(InputError, match=r"was trained on the 8 classes of .*camvid has 11: .*"):
        run(eval_cli.main, "--workdir", workdir, "--config.data.dataset=camvid")


def test_a_checkpoint_of_another_model_is_refused_in_one_line(workdir):
    message = r"/checkpoints/[24] does not hold segret_tiny with 8 classes: 38 arrays differ, "
    with pytest.raises(InputError, match=message) as error:
        run(eval_cli.main, "--workdir", workdir, "--config.model.settings.decoder_channels=24")
    assert "\n" not in str(error.value)


def test_predict_writes_labels_and_overlays_of_the_pictures_size(workdir, tmp_path):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees to show
    photograph = Image.fromarray(rng.integers(0, 256, (30, 50, 3)).astype(np.uint8))
    photograph.save(pictures / "turned.jpg", exif=exif)
    Image.fromarray(rng.integers(0, 256, (40, 60)).astype(np.uint8)).save(pictures / "gray.png")
    (pictures / "notes.txt").touch()

    printed = run(predict_cli.main, pictures, "--checkpoint", workdir, "--out", out)
    assert f"2 pictures segmented with {workdir / 'checkpoints'}" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        "gray_label.png", "gray_overlay.png", "turned_label.png", "turned_overlay.png",
    ]  # fmt: skip
    for name, (width, height) in {"turned": (30, 50), "gray": (60, 40)}.items():
        with Image.open(out / f"{name}_label.png") as label:
            assert (label.size, label.mode) == ((width, height), "P")
            assert np.asarray(label).max() < 8
        with Image.open(out / f"{name}_overlay.png") as overlay:
            assert overlay.size[0] == width
            assert overlay.size[1] > height  # a legend is below


def test_ctrl_c_saves_and_the_same_command_continues_to_the_same_result(
    workdir, scores, tmp_path, monkeypatch
):
    original = loop.initialize

    def interrupted(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "initialize", interrupted)
        printed = train(tmp_path)
    saved = f"saved in {tmp_path / 'checkpoints'}; run the same command again to resume"
    assert f"stopped at step 1, {saved}" in printed
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert not (tmp_path / "metrics.json").exists()

    assert "continuing at step 1" in train(tmp_path)
    assert read_json(tmp_path / "metrics.json") == scores
    for kind, names in (
        ("train", ("loss", "accuracy", "learning_rate")),
        ("validation", ("mIoU",)),
    ):
        for step, record in records(workdir, kind).items():
            if step > 1:
                resumed = records(tmp_path, kind)[step]
                assert [resumed[name] for name in names] == [record[name] for name in names]
