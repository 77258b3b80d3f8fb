"""What the paper reports of its tokenizers (arXiv 2606.32039), as numbers: ImageNet 256 px, warm-up -> GEAR.
Never shown without the word paper."""

# Of each quantizer.
TOKENIZERS: dict[str, dict[str, tuple[float, float]]] = {
    "VQ": {"psnr": (21.06, 20.78), "ssim": (0.57, 0.56), "rfid": (1.724, 1.640), "gfid": (14.719, 10.630)},
    "LFQ": {"psnr": (20.97, 20.48), "ssim": (0.56, 0.55), "rfid": (2.421, 2.129), "gfid": (18.681, 14.776)},
    "IBQ": {"psnr": (21.18, 20.92), "ssim": (0.58, 0.57), "rfid": (1.973, 1.716), "gfid": (20.246, 12.972)},
}
# Patch-level CKA of the VQ tokenizer with DINOv2, before (z) and after (c_q) quantization.
CKA = {"z": (0.1727, 0.1070), "c_q": (0.1609, 0.0997)}
# How its assignments change from warm-up to GEAR, in words: entropy, probability of the likeliest codes, use.
ASSIGNMENTS = {"entropy": "lower", "mass": "higher", "usage": "all codes still used"}
