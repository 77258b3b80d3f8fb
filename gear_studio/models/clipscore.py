"""CLIPScore: how well a picture shows what its caption says, to a frozen CLIP (Hessel et al. 2021, arXiv
2104.08718).

Notable: the scale is torchmetrics', which most papers report, but not its code. That code also cuts the end
token off a long caption, where CLIP reads its features of the caption; and its version 1.9 does not run with
transformers 5.
"""

import torch
from torch import Tensor, nn

from gear_studio.errors import InputError
from gear_studio.models.published import loading_transformers

MODEL = "openai/clip-vit-large-patch14"
OPTION = "--clip FOLDER"


class CLIPScore(nn.Module):
    """Pictures uint8 (B, 3, H, W) of any size, and their B captions -> (B,), max(100 cos, 0) of the angle
    between CLIP's two embeddings, float32.

    Pictures are resized, cropped and normalised as the model's own processor does; captions are cut to the 77
    tokens that CLIP takes, start and end included.

    name: a CLIP of the Hugging Face Hub, or a folder with one. Raises ImportError without transformers,
    FileNotFoundError where the model cannot be had, ValueError where it is no CLIP."""

    def __init__(self, name: str = MODEL):
        super().__init__()
        with loading_transformers(name, "CLIP", OPTION):
            from transformers import AutoModel, CLIPModel, CLIPProcessor

            self.net = AutoModel.from_pretrained(name, dtype=torch.float32)
            if not isinstance(self.net, CLIPModel):
                raise InputError(f"{name} is a {type(self.net).__name__}, not a CLIP; name one: {OPTION}")
            self.processor = CLIPProcessor.from_pretrained(name)
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor, captions: list[str]) -> Tensor:
        inputs = self.processor(
            text=captions,
            images=list(pictures),
            padding=True,
            truncation=True,
            max_length=self.net.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.net.device)
        outputs = self.net(**inputs)
        return 100 * (outputs.image_embeds * outputs.text_embeds).sum(-1).clamp(min=0)
