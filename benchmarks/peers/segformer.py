"""SegFormer of the transformers package, in the size next to each variant's, with random weights.

For `python -m benchmarks.against`; needs `pip install torch transformers`.
"""

from collections.abc import Callable

import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

# MiT-B1, B2, B4 and B5: widths, depths and decoder channels, as published.
SIZES = {"tiny": ([2, 2, 2, 2], 256), "small": ([3, 4, 6, 3], 768),
         "base": ([3, 8, 27, 3], 768), "large": ([3, 6, 40, 3], 768)}  # fmt: skip


def make(variant: str, mode: str, batch: int, height: int, width: int) -> Callable[[], None]:
    """Return one forward pass to the logits, or one training step with AdamW."""
    torch.manual_seed(0)
    depths, channels = SIZES[variant]
    config = SegformerConfig(
        hidden_sizes=[64, 128, 320, 512], depths=depths, decoder_hidden_size=channels,
        num_labels=150,
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config)
    image = torch.randn(batch, 3, height, width)
    if mode == "forward":
        model.eval()

        def forward() -> None:
            with torch.inference_mode():
                model(image)

        return forward
    label = torch.randint(0, 150, (batch, height, width))
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-5)

    def step() -> None:
        optimizer.zero_grad()
        model(image, labels=label).loss.backward()
        optimizer.step()

    return step
