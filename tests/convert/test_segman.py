"""SegMAN's files: which state dict, which widths and classes; its constants."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segret_jax.checkpoint import model as checkpoints
from segret_jax.cli.convert import main as convert
from segret_jax.config import ModelConfig
from segret_jax.convert.importing import import_tensors
from segret_jax.convert.recognize import TorchModel, identify
from segret_jax.data.class_table import load_class_table
from segret_jax.errors import InputError
from segret_jax.trees import named_leaves
from tests import golden_weights as golden
from tests.convert.models import tensors_of, write_pth, write_state_dicts
from tests.settings import segman

ANGLE = "layers.4.rope.angle"


def shapes_of(name: str) -> dict[str, np.ndarray]:
    """Tensors of the right names and shapes, without memory."""
    return {key: np.broadcast_to(np.float32(0), s) for key, s in golden.keys(name).items()}


@pytest.mark.parametrize("variant", ["tiny", "small", "base", "large"])
def test_the_released_models_are_distinguished(variant: str) -> None:
    for dataset, classes in (("", 150), ("_cityscapes", 19), ("_coco", 171)):
        channels = 152 if (variant, classes) == ("small", 19) else 0
        model = segman(variant=variant, decoder_channels=channels)
        found = identify(shapes_of(f"segman_{variant}{dataset}"), ModelConfig())
        assert found == TorchModel(model=model, num_classes=classes, prefix=True)
    found = identify(shapes_of(f"segman_encoder_{variant}"), ModelConfig())
    model = segman(variant=variant, task="classification")
    assert found == TorchModel(model=model, num_classes=1000, prefix=False)


def test_widths_are_of_the_file() -> None:
    """The parameters that the authors give for large suggest 512 projected channels."""
    tensors = shapes_of("segman_large")
    tensors["decode_head.linear_c2.proj.weight"] = np.zeros((512, 192))
    assert identify(tensors, ModelConfig()).model == segman(
        variant="large", projection_channels=512
    )
    given = ["family", "settings.projection_channels"]
    with pytest.raises(InputError, match="is set to 448, but the file holds 512"):
        identify(tensors, segman(projection_channels=448), given)
    with pytest.raises(InputError, match="is no model of segret: its names begin with backbone"):
        identify(tensors, ModelConfig(), ["family"])


@pytest.mark.usefixtures("mini")
def test_of_imagenet_files_the_average_is_taken_and_its_prefix_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = tensors_of(segman(task="classification"), 10)
    wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
    other = {name: tensor + 1 for name, tensor in wrapped.items()}
    states = {"state_dict": other, "state_dict_ema": wrapped}
    file = write_state_dicts(tmp_path / "segman_t.pth.tar", states, epoch=309, arch="segman_t")
    convert([str(file), str(tmp_path / "average")])
    printed = capsys.readouterr().out
    assert "torch zip, under 'state_dict_ema'" in printed
    assert "other state dicts in it: 'state_dict' (choose with --wrapper)" in printed
    assert "segman_encoder_tiny, 10 classes (imagenet)\n  SegMAN's ImageNet classifier\n" in printed
    convert([str(file), str(tmp_path / "last"), "--wrapper", "state_dict", "--allow", "rope"])
    for folder, expected in (("average", wrapped), ("last", other)):
        kernel = leaves(tmp_path / folder)["params/encoder/stages/0/0/mixer/qkv/kernel"]
        theirs = expected["module.layers.0.blocks.0.token_mixer.qkv.weight"]
        np.testing.assert_array_equal(kernel, theirs[:, :, 0, 0].T)


def leaves(checkpoint: Path) -> dict[str, Any]:
    return named_leaves(
        checkpoints.load_model(checkpoint, checkpoints.load_config(checkpoint))._asdict()
    )


@pytest.mark.usefixtures("mini")
def test_an_encoder_without_its_classifier_is_taken_if_allowed() -> None:
    tensors = tensors_of(segman(task="classification"), 1000)
    encoder = {n: t for n, t in tensors.items() if not n.startswith("classifier.")}
    with pytest.raises(InputError, match="differs from segman_encoder_tiny with 1000 classes in 8"):
        import_tensors(encoder, ModelConfig())
    result = import_tensors(encoder, ModelConfig(), allow=[r"^classifier\."])
    assert len(result.initialized) == 8
    assert result.recognized.num_classes == 1000


@pytest.mark.usefixtures("mini")
@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_angles_are_compared_with_their_formula(task: str) -> None:
    tensors = tensors_of(segman(task=task), 5)
    name = "backbone." * (task == "segmentation") + ANGLE
    # Heads of 8 channels in stage 3: two frequencies, 1 and 1/10000.
    np.testing.assert_allclose(tensors[name], [1, 1, 1e-4, 1e-4], rtol=1e-6)
    assert name in import_tensors(tensors, ModelConfig()).dropped
    wrong = tensors | {name: np.float32([1, 1, 1e-2, 1e-2])}
    with pytest.raises(InputError, match=r"rope\.angle begins .*, but the original has .*1\.e-04"):
        import_tensors(wrong, ModelConfig())


@pytest.mark.usefixtures("mini")
@pytest.mark.parametrize("has_names", [True, False])
def test_150_outputs_can_be_of_cityscapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], has_names: bool
) -> None:
    """The released segman_t_cityscapes has 150; its config says so."""
    classes = load_class_table("cityscapes").class_names
    meta = {"CLASSES": classes} if has_names else {}
    file = write_pth(tmp_path / "a.pth", tensors_of(segman(), 150), meta=meta)
    given = [] if has_names else ["--config.data.dataset=cityscapes"]  # or a recipe for it
    convert([str(file), str(tmp_path / "a"), *given])
    printed = capsys.readouterr().out
    assert "segman_tiny, 150 classes (cityscapes)" in printed
    assert "NOTE: 150 outputs, but cityscapes has 19 classes: output 19 and all after" in printed
    assert checkpoints.load_config(tmp_path / "a").data.dataset == "cityscapes"
    convert([str(tmp_path / "a"), str(tmp_path / "b.npz")])
    with np.load(tmp_path / "b.npz") as back:
        assert back["decode_head.conv_seg.weight"].shape == (150, 16, 1, 1)
