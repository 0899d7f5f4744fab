"""SegFormer of the transformers package, in the size next to each variant's, with random weights.

For `python -m benchmarks.against`; needs `pip install torch transformers`.
"""

from collections.abc import Callable

import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

# MiT-B1, B2, B4 and B5: widths, depths and decoder channels, as published.
SIZES = {"tiny": ([2, 2, 2, 2], 256), "small": ([3, 4, 6, 3], 768),
         "base": ([3, 8, 27, 3], 768), "large": ([3, 6, 40, 3], 768)}  # fmt: skip


def make(
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
    depths, channels = SIZES[variant]
    config = SegformerConfig(
        hidden_sizes=[64, 128, 320, 512], depths=depths, decoder_hidden_size=channels,
        num_labels=150,
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config).to(device)
    run = torch.compile(model, dynamic=False) if compiled else model
    image = torch.randn(batch, 3, height, width, device=device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    if mode == "forward":
        model.eval()

        def forward() -> None:
            with torch.inference_mode(), autocast:
                run(image)
            wait()

        return forward
    label = torch.randint(0, 150, (batch, height, width), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-5)

    def step() -> None:
        optimizer.zero_grad()
        with autocast:
            loss = run(image, labels=label).loss
        loss.backward()
        optimizer.step()
        wait()

    return step
