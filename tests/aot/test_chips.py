"""GPUs that are not there: their compute capability chooses the kernels of their programs."""

import jax
import pytest

from segret_jax.aot import programs
from segret_jax.aot.chips import GPUS, Topology, target_capability
from segret_jax.config import Config

DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024
  cuda_compute_capability {{
    {}
  }}
  shared_memory_per_block_optin: 65536
}}
platform_name: "CUDA"
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DESCRIPTION.format("major: 7\n    minor: 5"), 7.5),
        (DESCRIPTION.format("major: 8"), 8.0),  # a 0 is left out
        (DESCRIPTION.format("major: 12\n    minor: 1\n    feature_extension: NONE"), 12.1),
        ('gpu_device_info { rocm_compute_capability { gcn_arch_name: "gfx90a" } }', None),
        ("", None),
    ],
)
def test_the_capability_is_read_from_xla_s_description(text, expected):
    assert target_capability(text) == expected


@pytest.mark.parametrize("program", ["train", "eval"])
def test_the_programs_of_absent_gpus_are_made_for_their_capability(mini, monkeypatch, program):
    seen = []

    class Found(Exception):  # noqa: N818 - a way out before the program is traced
        pass

    def note(*args: object, capability: object = "none", **_: object) -> None:
        seen.append(args[2] if capability == "none" else capability)
        raise Found

    monkeypatch.setattr(programs, "make_train_step", note)
    monkeypatch.setattr(programs, "compiled_programs", note)
    make = programs.train_step if program == "train" else programs.evaluation
    config = Config()
    config.data.crop, config.train.batch_size = (32, 32), 2
    with pytest.raises(Found):
        make(config, 5, Topology("t4:2", GPUS["t4"], jax.devices(), 7.5))
    assert seen == [7.5]
