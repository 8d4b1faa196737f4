"""One picture, one file: what stands between a codec's tensors and the `.nbk` files of a user."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebook import presets
from noisebook.container import Container, unpack
from noisebook.errors import FormatError
from noisebook.spec import CodecSpec

if TYPE_CHECKING:
    import numpy as np

    from noisebook.codec import Codec


def preset_number(spec: CodecSpec) -> int:
    """The number in files of the preset with that specification; 0 if it is none."""
    preset = presets.by_hash(spec.hash)
    return preset.number if preset else 0


def token_runs(spec: CodecSpec, height: int, width: int) -> list[tuple[int, int]]:
    """(count, vocabulary) of the runs in an image's token stream, as `container.pack` takes them."""
    return [(count, vocabulary) for _, count, vocabulary in spec.runs_for(height, width)]


def encode_picture(codec: "Codec", pixels: "np.ndarray", embed: bool = False) -> bytes:
    """uint8 [H, W, C] -> the bytes of a `.nbk` file. The specification is embedded on request, or if it is no preset's."""
    import torch

    height, width = pixels.shape[:2]
    payload = codec.encode_packed(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])[0].cpu().numpy().tobytes()
    number = preset_number(codec.spec)
    spec = codec.spec.to_json().encode() if embed or not number else None
    return Container(codec.spec.hash, height, width, payload, number, spec).to_bytes()


def decode_picture(codec: "Codec", container: Container) -> "np.ndarray":
    """A file of this codec -> uint8 [H, W, C], rounded to nearest. Raises FormatError where the payload does not fit."""
    import numpy as np
    import torch

    payload = torch.from_numpy(np.frombuffer(container.payload, np.uint8).copy())
    image = codec.decode_packed(payload[None], (container.height, container.width))[0]
    return image.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).cpu().numpy()


def spec_of(container: Container) -> CodecSpec | None:
    """The specification a file stands for: embedded, or of its preset; None if this version knows neither."""
    if container.spec_json is None:
        preset = presets.by_hash(container.codec_hash)
        return preset.spec if preset else None
    spec = CodecSpec.from_json(container.spec_json)
    if spec.hash != container.codec_hash:
        raise FormatError("the embedded specification does not match the codec hash: the file is damaged")
    return spec


def codec_name(spec: CodecSpec) -> str:
    """A codec in words, for messages."""
    preset = presets.by_hash(spec.hash)
    name = f"preset {preset.name!r}" if preset else "a custom codec"
    return f"{name} on backbone {spec.backbone!r} ({spec.fingerprint[:16]})"


def describe(path: Path) -> dict[str, Any]:
    """Everything a file says, without a backbone. Raises FormatError for a damaged one."""
    container = Container.read(path)
    spec, size = spec_of(container), len(container.to_bytes())
    out = {"name": str(path), "bytes": size, "height": container.height, "width": container.width,
           "bpp": 8 * size / (container.height * container.width), "payload_bytes": len(container.payload),
           "preset": container.preset, "codec_hash": container.codec_hash.hex(),
           "embedded_spec": container.spec_json is not None, "codec": None, "tokens": None, "error": None}  # fmt: skip
    if spec is not None:
        tokens = unpack(container.payload, token_runs(spec, container.height, container.width))
        out |= {"codec": codec_name(spec), "tokens": len(tokens), "steps": len(spec.schedule), "law": spec.law,
                "vocabulary": spec.vocabulary, "seed": spec.seed, "finish": spec.finish,
                "first_tokens": tokens[:16].tolist()}  # fmt: skip
    return out
