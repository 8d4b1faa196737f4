"""Files of models that noisebook does not read: what each is, and how to come from it to one that is read.

A file is judged by its first bytes, the names of its tensors and its ending. Nothing in it is run or unpickled.
"""

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

WEIGHT_ENDINGS = (
    *(
        ".safetensors",
        ".ckpt",
        ".pt",
        ".pth",
        ".bin",
        ".pkl",
        ".pickle",
        ".gguf",
        ".onnx",
        ".h5",
        ".msgpack",
        ".npz",
        ".mar",
    ),
    ".torchscript",
)
HEAD = 512  # bytes that tell what a file is
MOST_NAMES = 4096  # of a zip that are looked at

ORIGINAL = "take the model that it was made from, in diffusers layout or as safetensors"
PIPELINE = "convert it: {}.from_single_file(FILE).save_pretrained(DIR) in diffusers, then give DIR"
LORA = (
    "a LoRA, which changes another model and is none itself: in diffusers load that model as pipe, then "
    "pipe.load_lora_weights(FILE), pipe.fuse_lora(), pipe.unload_lora_weights(), pipe.save_pretrained(DIR), and give DIR"
)
PICKLE = "a pickle, which can run code when it is opened"
# What the names of a file's tensors say: the first pattern that one of them has.
TENSORS: tuple[tuple[str, str], ...] = (
    (r"(^|[._])lora_|\.lora[._]|\.(hada|lokr|oft)_|dora_scale|^lora|\.processor\..*lora", LORA),
    (r"weight_format|\.(absmax|quant_map|scale_weight|weight_scale|qweight|qzeros)$", f"a quantised model: {ORIGINAL}"),
    (r"^(control_model|controlnet_|control_)", f"a ControlNet, which steers another model and is none itself: {ORIGINAL}"),
    (r"^(emb_params|string_to_param|<.*>)", "an embedding of a word (textual inversion), which is no model"),
    (r"^conditioner\.embedders\.", "a single-file checkpoint of SDXL: " + PIPELINE.format("StableDiffusionXLPipeline")),
    (r"joint_blocks\.", "a single-file checkpoint of Stable Diffusion 3: " + PIPELINE.format("StableDiffusion3Pipeline")),
    (r"double_blocks\.", "a single-file checkpoint of Flux: " + PIPELINE.format("FluxPipeline")),
    (
        r"^(model\.diffusion_model|cond_stage_model|model_ema)\.",
        "a single-file checkpoint of Stable Diffusion: " + PIPELINE.format("StableDiffusionPipeline"),
    ),
    (
        r"^(first_stage_model\.|(encoder|decoder)\.(conv_in|mid\.|down\.|up\.|mid_block|down_blocks|up_blocks))",
        "an autoencoder only, without the network that removes noise: give a pipeline's folder that has both",
    ),
    (
        r"^(text_model\.|transformer\.text_model|encoder\.block\.|shared\.weight)",
        "a text encoder only: give the folder of the pipeline that it is a part of",
    ),
    (
        r"^(down_blocks|up_blocks|mid_block|transformer_blocks|single_transformer_blocks|conv_in|time_embedding)\.",
        "the weights of a model in diffusers layout without their config: give the folder, with config.json and the "
        "scheduler's config",
    ),
)
ENDINGS = {
    ".pkl": f"{PICKLE}: one of NVIDIA's EDM is read by `noisebook convert FILE -o FILE.safetensors`; of another, {ORIGINAL}",
    ".pickle": f"{PICKLE}: {ORIGINAL}",
    ".bin": f"{PICKLE}: convert it with diffusers, from_pretrained(DIR, use_safetensors=False).save_pretrained(NEW)",
    ".pt": f"weights of PyTorch in {PICKLE}: `noisebook convert` reads those of CoD; of others, {ORIGINAL}",
    ".ckpt": f"a checkpoint in {PICKLE}; " + PIPELINE.format("StableDiffusionPipeline"),
    ".gguf": f"quantised weights (GGUF): {ORIGINAL}",
    ".onnx": f"an ONNX graph, which is no weights of a network that noisebook knows: {ORIGINAL}",
    ".h5": f"weights of Keras or TensorFlow (HDF5): {ORIGINAL}",
    ".msgpack": f"weights of Flax: {ORIGINAL}, or convert it with from_pretrained(DIR, from_flax=True) in diffusers",
    ".npz": "arrays of numpy: `noisebook fit-prior {pca,dct,spectrum} FILE -o NEW.safetensors` makes a backbone of images",
    ".nbk": "a file of noisebook's tokens, which is a picture: give the backbone that it was made with",
    ".json": "a JSON file: give the model's folder; a curve goes to --curve",
}
ENDINGS |= {".pth": ENDINGS[".pt"], ".torchscript": f"a TorchScript program: {ORIGINAL}", ".mar": ENDINGS[".pt"]}
POINTER = "a pointer of Git LFS, not the file itself: run `git lfs pull` in its folder, or download the file from the hub"
PAGE = "a page of HTML, saved in place of the file: the download needs a login or another address (.../resolve/main/...)"


def what_is(path: Path, lead: str = "; it is ") -> str:
    """`lead` and what a file is, with the way to one that is read; "" where that is not known."""
    try:
        with open(path, "rb") as f:
            head = f.read(HEAD)
        size = path.stat().st_size
    except OSError:
        return ""
    text = _by_bytes(path, head, size) or ENDINGS.get(path.suffix.lower(), "")
    return lead + text if text else ""


def what_tensors_are(names: Iterable[str]) -> str:
    """What tensors of these names are, as `what_is` says it; "" where that is not known."""
    names = list(names)
    for pattern, text in TENSORS:
        if any(map(re.compile(pattern).search, names)):
            return text
    return ""


def _by_bytes(path: Path, head: bytes, size: int) -> str:
    start = head.lstrip().lower()
    if not head:
        return "an empty file: download it again"
    if head.startswith(b"version https://git-lfs"):
        return POINTER
    if start.startswith((b"<!doctype", b"<html", b"<head")):
        return PAGE
    if head.startswith(b"GGUF"):
        return ENDINGS[".gguf"]
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return ENDINGS[".h5"]
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and path.suffix.lower() not in ENDINGS:
        return ENDINGS[".pickle"]
    if head.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd", b"Rar!")) or head[257:262] == b"ustar":
        return "an archive: unpack it, then give the folder or file that was in it"
    if head[8:9] == b"{":
        return _safetensors(path, int.from_bytes(head[:8], "little"), size)
    if start.startswith(b"{"):
        return ENDINGS[".json"]
    return ""


def _zip(path: Path) -> str:
    """A file of `torch.save`, of TorchScript or of numpy; or an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()[:MOST_NAMES]
    except (OSError, ValueError, zipfile.BadZipFile):
        return "a damaged zip file, or half of one: download it again"
    if any(re.search(r"(^|/)(constants\.pkl|code/.*\.py)$", name) for name in names):
        return ENDINGS[".torchscript"]
    if any(re.search(r"(^|/)data\.pkl$", name) for name in names):
        return ENDINGS.get(path.suffix.lower(), ENDINGS[".pt"])
    if all(name.endswith(".npy") for name in names):
        return ENDINGS[".npz"]
    return "an archive: unpack it, then give the folder or file that was in it"


def _safetensors(path: Path, length: int, size: int) -> str:
    if 8 + length > size:
        return "only the beginning of a safetensors file: download it again"
    try:
        with safe_open(path, "pt") as f:
            return what_tensors_are(f.keys())
    except (SafetensorError, OSError):
        return "a damaged safetensors file, or half of one: download it again"
