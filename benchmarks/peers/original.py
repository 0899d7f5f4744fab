"""The original SegRet, from a checkout of its sources (github.com/ZhiyuanLi218/segret).

For `python -m benchmarks.against FOLDER`; needs `pip install torch`. Its sources import mmcv 1.x,
timm and parts of mmsegmentation, of which the model itself needs little: that is stood in for here.
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

NUM_CLASSES = 150
NORMS = {"BN": nn.BatchNorm2d, "SyncBN": nn.BatchNorm2d, "LN": nn.LayerNorm}
# Of each variant: the backbone's name, its widths and the decoder's channels.
VARIANTS = {
    "tiny": ("RMT_T", [64, 128, 256, 512], 256),
    "small": ("RMT_S", [64, 128, 256, 512], 256),
    "base": ("RMT_B", [80, 160, 320, 512], 256),
    "large": ("RMT_L", [112, 224, 448, 640], 512),
}


def make(
    sources: Path,
    variant: str,
    mode: str,
    batch: int,
    height: int,
    width: int,
    *,
    dtype: str = "float32",
    compiled: bool = False,
) -> Callable[[], None]:
    """Return one forward pass to the logits, or one training step with AdamW.

    On a GPU if there is one; bfloat16 is autocast, `compiled` is torch.compile.
    """
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(sources, variant).to(device)
    image = torch.randn(batch, 3, height, width, device=device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    if mode == "forward":
        model.eval()
        infer = torch.compile(model, dynamic=False) if compiled else model

        def forward() -> None:
            with torch.inference_mode(), autocast:
                infer(image)
            wait()

        return forward
    label = torch.randint(0, NUM_CLASSES, (batch, height, width), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    model.train()

    def loss_of(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        logits = functional.interpolate(model(image), (height, width), mode="bilinear")
        return functional.cross_entropy(logits, label, ignore_index=255)

    loss = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def step() -> None:
        optimizer.zero_grad()
        with autocast:
            total = loss(image, label)
        total.backward()
        optimizer.step()
        wait()

    return step


def build(sources: Path, variant: str) -> nn.Module:
    """Return the model, which maps [b, 3, H, W] to logits [b, k, ⌈H/4⌉, ⌈W/4⌉]."""
    _stand_in()
    name, widths, channels = VARIANTS[variant]
    models = sources / "mmseg" / "models"
    backbone = _load("mmseg.models.backbones.RMT", models / "backbones" / "RMT.py")
    _load("mmseg.models.decode_heads.decode_head", models / "decode_heads" / "decode_head.py")
    head = _load(
        "mmseg.models.decode_heads.head", models / "decode_heads" / "segformer_withResidual_head.py"
    )
    decoder = head.SegFormerHeadWithRes(
        feature_strides=[4, 8, 16, 32], in_channels=widths, in_index=[0, 1, 2, 3], channels=128,
        num_classes=NUM_CLASSES, norm_cfg={"type": "SyncBN", "requires_grad": True},
        decoder_params={"embed_dim": channels, "use_relu": True},
    )  # fmt: skip
    return nn.Sequential(getattr(backbone, name)(), decoder)


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _stand_in() -> None:
    """Put modules of the names that the sources import in place."""

    class Registry:
        def register_module(self) -> Callable:
            return lambda cls: cls

    def norm(config: dict, channels: int) -> tuple[str, nn.Module]:
        settings = {"eps": config["eps"]} if "eps" in config else {}
        return "norm", NORMS[config["type"]](channels, **settings)

    class ConvModule(nn.Sequential):
        def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm_cfg: dict):
            conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False)
            super().__init__(conv, norm(norm_cfg, out_channels)[1], nn.ReLU(inplace=True))

    class DropPath(nn.Module):
        def __init__(self, rate: float = 0.0):
            super().__init__()
            self.rate = rate

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training or self.rate == 0:
                return x
            kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
            return x * kept / (1 - self.rate)

    def unchanged(*_: Any, **__: Any) -> Callable:
        return lambda function: function

    def nothing(*_: Any, **__: Any) -> None:
        return None

    contents: dict[str, dict[str, Any]] = {
        "mmcv": {},
        "mmcv.cnn": {"build_norm_layer": norm, "ConvModule": ConvModule, "normal_init": nothing},
        "mmcv.runner": {
            "load_checkpoint": nothing, "auto_fp16": unchanged, "force_fp32": unchanged
        },
        "timm": {}, "timm.models": {},
        "timm.models.layers": {"DropPath": DropPath, "trunc_normal_": nn.init.trunc_normal_},
        "mmseg": {}, "mmseg.models": {}, "mmseg.models.backbones": {},
        "mmseg.models.decode_heads": {},
        "mmseg.models.builder": {
            "BACKBONES": Registry(), "HEADS": Registry(), "build_loss": nothing
        },
        "mmseg.models.losses": {"accuracy": nothing},
        "mmseg.core": {"build_pixel_sampler": nothing},
        "mmseg.ops": {"resize": functional.interpolate},
        "mmseg.utils": {"get_root_logger": nothing},
    }  # fmt: skip
    for name, values in contents.items():
        module = types.ModuleType(name)
        module.__path__ = []
        vars(module).update(values)
        sys.modules[name] = module
