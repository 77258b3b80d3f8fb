"""LPIPS: how different two images look to a frozen VGG-16 (Zhang et al. 2018, arXiv 1801.03924).

The perceptual term of the tokenizer's objective at paper scale, and a measure of reconstructions. The network
and its five small linear layers are torchmetrics'; VGG-16's weights are torchvision's ImageNet file, half a
gigabyte, given by path or downloaded once.
"""

from pathlib import Path

from torch import Tensor, nn

from gear_studio.devices import without_autocast
from gear_studio.errors import InputError
from gear_studio.models.published import load_state_dict

VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"


class LPIPS(nn.Module):
    """Two images (B, 3, H, W) in [-1, 1] -> distances (B,), 0 for equal images; gradient to the images only.

    weights: torchvision's VGG-16 file, or None to download it. Stays in eval mode and is frozen. In float32
    also under autocast, as released. Raises FileNotFoundError or ValueError naming the file when the weights
    cannot be had or are another network's."""

    def __init__(self, weights: str | Path | None = None, option: str = "--lpips-weights FILE"):
        super().__init__()
        # The network behind torchmetrics' public metric, which as a loss would wait for the device in each
        # step to check the images' range, and would refuse a reconstruction that leaves it.
        from torchmetrics.functional.image.lpips import _NoTrainLpips

        state = load_state_dict(VGG16, weights, "LPIPS", option)
        self.net = _NoTrainLpips(net="vgg", pnet_rand=True)
        # Layer i of torchvision's `features` is layer i here too, inside one of five slices.
        names = {key: "features." + key.split(".", 1)[1] for key in self.net.net.state_dict()}
        if missing := sorted(set(names.values()) - state.keys()):
            raise InputError(
                f"{weights or VGG16} is no VGG-16 of torchvision: it lacks {', '.join(missing[:3])}; {option}"
            )
        self.net.net.load_state_dict({key: state[name] for key, name in names.items()})
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        with without_autocast(images.device):
            return self.net(images.float(), reference.float()).flatten()
