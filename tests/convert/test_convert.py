"""The command: golden weights through files of each format, what it says, and back."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from segret_jax.checkpoint import model as checkpoints
from segret_jax.checkpoint.reading import read_stored_json
from segret_jax.cli.convert import main
from segret_jax.config import ModelConfig
from segret_jax.convert.exporting import write_tensors
from segret_jax.convert.report import summary
from segret_jax.convert.tensors import read_tensors
from segret_jax.errors import InputError
from segret_jax.models.segret.torch_format import describe
from tests import golden_weights as golden
from tests.convert.models import CLASSIFIER, random_tensors
from tests.settings import segret

DATA = Path(__file__).parent / "data"


def convert(*arguments: str | Path) -> None:
    main([str(argument) for argument in arguments])


def fault(*arguments: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        convert(*arguments)
    return str(caught.value)


def load(checkpoint: Path) -> tuple[Any, Any, Any]:
    return checkpoints.load_model(checkpoint, checkpoints.load_config(checkpoint))


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_file_of_real_pytorch_gives_the_same(tmp_path: Path, options: dict[str, bool]) -> None:
    torch = pytest.importorskip("torch")
    tensors = golden.tensors("segret_tiny")
    state = {f"module.{name}": torch.tensor(array) for name, array in tensors.items()}
    torch.save({"state_dict": state, "meta": {"epoch": 3}}, tmp_path / "a.pth", **options)
    write_tensors(tmp_path / "b.npz", tensors, {})
    for file in ("a.pth", "b.npz"):
        convert(tmp_path / file, tmp_path / file[0])
    first, second = (load(tmp_path / name)[1:] for name in "ab")
    assert jax.tree.all(jax.tree.map(np.array_equal, first, second))


@pytest.mark.usefixtures("mini")
@pytest.mark.parametrize("model", [{}, CLASSIFIER | {"token_head": True}], ids=["segret", "rmt"])
def test_to_a_checkpoint_and_back_is_bit_equal(model: dict[str, Any], tmp_path: Path) -> None:
    tensors = random_tensors(19, **model)
    for name, tensor in tensors.items():
        if "conv_seg" in name:
            tensors[name] = np.full_like(tensor, 0.25)  # unused, but not lost
        if "num_batches_tracked" in name:
            tensors[name] = np.array(2**40)
    write_tensors(tmp_path / "a.npz", tensors, {})
    convert(tmp_path / "a.npz", tmp_path / "checkpoint")
    convert(tmp_path / "checkpoint", tmp_path / "b.safetensors", "--to", "torch")
    convert(tmp_path / "a.npz", tmp_path / "c.npz")  # without a checkpoint between
    for file in ("b.safetensors", "c.npz"):
        back = read_tensors(tmp_path / file).tensors
        assert back.keys() == tensors.keys()
        assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.usefixtures("mini")
def test_the_report_is_printed_saved_and_kept_in_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = random_tensors(19)
    tensors["decode_head.extra"] = np.zeros(3)
    del tensors["decode_head.linear_pred.bias"]
    half = {n: t.astype(np.float16) if t.dtype == np.float32 else t for n, t in tensors.items()}
    write_tensors(tmp_path / "half.safetensors", half, {"epoch": "3"})
    allow = ["--allow", r"head\.extra$", "--allow", r"linear_pred\.bias"]
    convert(tmp_path / "half.safetensors", tmp_path / "a", *allow, "--report", tmp_path / "r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report == read_stored_json(tmp_path / "a" / "source")
    _, *trees = load(tmp_path / "a")
    numbers = sum(leaf.size for leaf in jax.tree.leaves(trees))
    assert (report["numbers"], report["filled"]) == (numbers, numbers - 19)
    assert report["filled_percent"] == pytest.approx(100 * (1 - 19 / numbers))
    assert report["mapped"]["backbone.layers.0.blocks.0.ffn.fc1.weight"] == {
        "leaf": "encoder/stages/0/0/ffn/fc1/kernel", "shape": [16, 8], "dtype": "float16",
    }  # fmt: skip
    assert report["sha256"] == read_tensors(tmp_path / "half.safetensors").sha256
    assert report["allow"] == allow[1::2]
    assert report["metadata"] == {"epoch": "3"}
    text = capsys.readouterr().out
    for line in (
        "segret_tiny, 19 classes (cityscapes)",
        f"filled: {numbers - 19:,} of {numbers:,} numbers",
        f"converted to float32: {len(report['mapped'])} of float16",
        r"dropped: decode_head.extra: accepted by --allow 'head\\.extra$'",
        r"initialized: decode_head.linear_pred.bias: accepted by --allow 'linear_pred\\.bias'",
        "metadata: epoch: 3",
    ):
        assert line in text, line


@pytest.mark.usefixtures("mini")
def test_a_classifier_warns_what_a_plain_encoder_loses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tensors(tmp_path / "a.npz", random_tensors(10, **CLASSIFIER), {})
    convert(tmp_path / "a.npz", tmp_path / "a")
    text = " ".join(capsys.readouterr().out.split())
    assert "NOTE: training that starts from it" in text
    assert "--config.model.settings.rotary=true --config.model.settings.ffn_conv=true" in text
    plain = {n: t for n, t in random_tensors(10, **CLASSIFIER).items() if "dwconv" not in n}
    write_tensors(tmp_path / "b.npz", plain, {})
    convert(tmp_path / "b.npz", tmp_path / "b")
    assert "NOTE" not in capsys.readouterr().out
    assert not checkpoints.load_config(tmp_path / "b").model.settings.rotary


@pytest.mark.usefixtures("mini")
@pytest.mark.parametrize(("rotary", "ffn_conv", "encoder", "note"), [
    (False, False, "without rotary phase and FFN convolutions", ""),
    (True, False, "with rotary phase, without FFN convolutions",
     "so drops the rotary phase, which changes the function. To keep it: "
     "--config.model.settings.rotary=true"),
    (False, True, "with FFN convolutions, without rotary phase",
     "so drops ffn.dwconv, which changes the function. To keep it: "
     "--config.model.settings.ffn_conv=true"),
    (True, True, "with rotary phase and FFN convolutions",
     "so drops ffn.dwconv and the rotary phase, which changes the function. To keep them: "
     "--config.model.settings.rotary=true --config.model.settings.ffn_conv=true"),
])  # fmt: skip
def test_the_report_distinguishes_rotation_and_convolutions(
    rotary: bool, ffn_conv: bool, encoder: str, note: str
) -> None:
    model = segret(task="classification", rotary=rotary, ffn_conv=ffn_conv)
    first, *notes = describe(model)
    assert first == f"RMT ImageNet classifier, encoder {encoder}"
    assert len(notes) == bool(note)
    assert note in "".join(notes)


def test_the_summary_can_be_printed_whatever_the_file_says() -> None:
    bad = "\x1b[2J\ud800"
    report = {
        "file": f"{bad}.npz", "format": "npz", "wrapper": bad, "other_wrappers": [bad],
        "sha256": "0" * 64, "model_name": "segret_tiny", "num_classes": 2, "classes": bad,
        "implies": [], "filled": 1, "numbers": 1, "filled_percent": 100.0, "mapped": {},
        "dtypes": {}, "dropped": {bad: "reason"}, "initialized": {}, "metadata": {bad: bad},
    }  # fmt: skip
    lines = summary(report).splitlines()
    assert len(lines) == 6
    assert all(line.isprintable() for line in lines)
    assert r"dropped: \x1b[2J\ud800: reason" in lines


@pytest.mark.usefixtures("mini")
def test_an_unwritable_report_stops_the_conversion(tmp_path: Path) -> None:
    source, out = tmp_path / "a.npz", tmp_path / "out"
    write_tensors(source, random_tensors(11), {})
    message = fault(source, out, "--report", tmp_path / "report.txt")
    assert message == f"--report {tmp_path}/report.txt: give a name that ends in .json"
    message = fault(source, out, "--report", source / "report.json")
    remedy = f"{source} is a file; choose another folder"
    assert message == f"cannot write --report {source}/report.json: {remedy}"
    assert list(tmp_path.iterdir()) == [source]
    convert(source, out, "--report", tmp_path / "new/folder/report.json")
    message = fault(source, tmp_path / "other", "--report", tmp_path / "other" / "report.json")
    assert f"lies in {tmp_path}/other, which keeps the report anyway" in message
    assert not (tmp_path / "other").exists()
    assert "model.bin: such files are not written" in fault(source, tmp_path / "model.bin")
    report = json.loads((tmp_path / "new/folder/report.json").read_text())
    assert report == read_stored_json(out / "source")


@pytest.mark.usefixtures("mini")
def test_deviations_from_the_released_models_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {n: t for n, t in random_tensors(11).items() if "zeroLayer" not in n}
    write_tensors(tmp_path / "a.npz", tensors, {})
    convert(tmp_path / "a.npz", tmp_path / "a", "--config.model.settings.decay=post_softmax")
    printed = " ".join(capsys.readouterr().out.split())
    assert "the file has no zeroLayer, so this is taken as the ablation" in printed
    assert "NOTE: decay 'post_softmax', which no released weights" in printed
    assert describe(ModelConfig()) == describe(segret(zero_branch=False))[:1]
    assert "decoder of 96 channels" in describe(segret(decoder_channels=96))[1]
    message = fault(tmp_path / "a.npz", tmp_path / "b", "--config.model.settings.zero_branch=true")
    assert "model.settings.zero_branch is set to True, but the file holds False" in message


@pytest.mark.usefixtures("mini")
def test_a_damaged_part_of_a_checkpoint_is_named(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.npz", random_tensors(11), {})
    convert(tmp_path / "a.npz", tmp_path / "a")
    (tmp_path / "a/kept/_METADATA").write_text("{")
    message = fault(tmp_path / "a", tmp_path / "b.npz")
    assert message.startswith(f"{tmp_path}/a/kept cannot be read (")
    assert message.endswith("): convert the weights again")


@pytest.mark.usefixtures("mini")
def test_the_config_of_the_checkpoint_is_the_files_and_the_users(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.npz", random_tensors(11), {})
    settings = ["--config.model.dtype=bfloat16", "--config.eval.flip=true"]
    convert(tmp_path / "a.npz", tmp_path / "a", *settings)
    config = checkpoints.load_config(tmp_path / "a")
    assert (config.model.variant, config.data.dataset) == ("tiny", "camvid")
    assert (config.model.dtype, config.eval.flip) == ("bfloat16", True)
    classes = [{"id": i, "name": f"c{i}", "color": f"#0000{i:02x}"} for i in range(11)]
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"name": "own", "classes": classes}))
    convert(tmp_path / "a.npz", tmp_path / "b", f"--config.data.dataset={own}")
    assert checkpoints.load_table(tmp_path / "b").class_names[10] == "c10"
    message = fault(tmp_path / "a.npz", tmp_path / "c", "--config", "configs/cityscapes_tiny.py")
    assert message.startswith(f"{tmp_path}/a.npz: data.dataset is set to 'cityscapes' with 19")
    message = fault(tmp_path / "a.npz", tmp_path / "c", "--config", "configs/cityscapes_base.py")
    assert "model.variant is set to 'base', but the file holds 'tiny'" in message
    assert not (tmp_path / "c").exists()


def test_a_state_dict_is_chosen_and_a_file_of_another_model_refused(tmp_path: Path) -> None:
    file, out = DATA / "checkpoint_zip.pth", tmp_path / "out"
    message = fault(file, out, "--wrapper", "model_ema")
    start = f"{file}: is no model of segret or segman: its names begin with 0.weight"
    assert message.startswith(start)
    assert "did you mean 'model_ema'" in fault(file, out, "--wrapper", "model_em")
    assert not out.exists()


@pytest.mark.usefixtures("mini")
def test_arguments_that_do_not_go_together(tmp_path: Path) -> None:
    source, checkpoint = tmp_path / "a.npz", tmp_path / "a"
    write_tensors(source, random_tensors(11), {})
    assert "a file for PyTorch ends in" in fault(source, checkpoint, "--to", "torch")
    assert "a file for PyTorch ends in" in fault(source, "b.npz", "--to", "checkpoint")
    convert(source, checkpoint)
    assert f"{checkpoint} exists" in fault(source, checkpoint)
    assert "is a checkpoint already" in fault(checkpoint, tmp_path / "b")
    for option in (["--allow", "x"], ["--wrapper", "x"], ["--config.model.settings.rotary=true"]):
        assert "give SRC and DST only" in fault(checkpoint, tmp_path / "b.npz", *option)
    assert "no checkpoint in" in fault(tmp_path, tmp_path / "b.npz")


def test_the_command_ends_with_status_2_and_one_line() -> None:
    command = [sys.executable, "-m", "segret_jax", "convert", "nowhere.pth", "out"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: nowhere.pth does not exist; give the folder of a run")
    assert result.stderr.count("\n") == 1
