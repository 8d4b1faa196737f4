"""One picture, one file: what stands between a codec's tensors and the `.nbk` files of a user."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebook.errors import CodecMismatchError, FormatError, ImageError, SpecError
from noisebook.format.container import Container, pack, read_file, unpack
from noisebook.format.derived import Derived, scaling_of
from noisebook.format.runs import Run
from noisebook.runtime.limits import DEFAULT, Limits, too_much
from noisebook.spec import curve as curves
from noisebook.spec import presets
from noisebook.spec.spec import CodecSpec

if TYPE_CHECKING:
    import numpy as np
    import torch

    from noisebook.codec.codec import Codec


def preset_number(spec: CodecSpec) -> int:
    """The number in files of the preset with that specification; 0 if it is none."""
    preset = presets.by_hash(spec.hash)
    return preset.number if preset else 0


def token_runs(spec: CodecSpec, height: int, width: int) -> list[Run]:
    """The runs in an image's token stream, as `container.pack` takes them."""
    return [run for _, run in spec.runs_for(height, width)]


def encode_picture(
    codec: "Codec",
    pixels: "np.ndarray",
    embed: bool | None = None,
    weights: "np.ndarray | None" = None,
    derived: Derived | None = None,
) -> bytes:
    """uint8 [H, W, C] -> the bytes of a `.nbk` file. The specification is embedded on request, or, unless `embed` is False,
    if it is no preset's and not `derived` from a shipped curve, perhaps a scaled one. `weights`: float [H, W], see
    `Codec.encode`."""
    payload = codec.encode_packed(*_tensors(pixels, weights))[0].cpu().numpy().tobytes()
    return _contained(codec, pixels, payload, embed, derived)


def encode_and_show(
    codec: "Codec",
    pixels: "np.ndarray",
    embed: bool | None = None,
    weights: "np.ndarray | None" = None,
    derived: Derived | None = None,
) -> tuple[bytes, "np.ndarray"]:
    """(what `encode_picture` gives, what `decode_picture` makes of it), in one walk."""
    return encode_and_trace(codec, pixels, embed, weights, derived)[:2]


def encode_and_trace(
    codec: "Codec",
    pixels: "np.ndarray",
    embed: bool | None = None,
    weights: "np.ndarray | None" = None,
    derived: Derived | None = None,
) -> tuple[bytes, "np.ndarray", dict[int, float]]:
    """`encode_and_show`, and beside it the errors of `Codec.trace`."""
    height, width = pixels.shape[:2]
    tokens, image, errors = codec.trace(*_tensors(pixels, weights))
    payload = pack(tokens[0].cpu().numpy(), codec.stream(height, width).runs)
    return _contained(codec, pixels, payload, embed, derived), pixels_of(image[0]), errors


def first_errors(codec: "Codec", pixels: "np.ndarray", steps: int) -> dict[int, float]:
    """The errors of `Codec.trace` in a walk of the first `steps` steps only, for as many network calls and one. Tokens
    are chosen once, whatever the codec's effort is: this is a look, and the cheapest one."""
    from noisebook.codec.codec import Codec

    short = replace(codec.spec, schedule=codec.spec.schedule[:steps])
    return Codec(short, codec.backbone, graphs=False, effort=0).trace(*_tensors(pixels, None))[2]


def _contained(codec: "Codec", pixels: "np.ndarray", payload: bytes, embed: bool | None, derived: Derived | None) -> bytes:
    """The file of a picture's payload. A large picture's has the specification that cuts it."""
    height, width = pixels.shape[:2]
    spec = codec.spec_for(height, width)
    if spec.resolutions and embed is False:
        raise SpecError("a file of a picture above 2^24 dimensions has its specification in it: leave out --no-embed-spec")
    return contain(spec, height, width, payload, embed, None if spec.resolutions else derived).to_bytes()


def contain(
    spec: CodecSpec, height: int, width: int, payload: bytes, embed: bool | None = None, derived: Derived | None = None
) -> Container:
    """The file of a payload; see `encode_picture`."""
    curve = curves.shipped_curves().get(spec.backbone)
    if derived is not None and not embed and curve is not None and curve.number and spec.fingerprint == curve.fingerprint:
        return Container(spec.hash, height, width, payload, curve.number, None, derived)
    number = preset_number(spec)
    text = spec.to_json().encode() if embed or (embed is None and not number) else None
    return Container(spec.hash, height, width, payload, number, text)


CODEWORDS = 1000  # that are made one by one, in the time of about one network call


def check_decode(
    spec: CodecSpec, height: int, width: int, limits: Limits = DEFAULT, steps: int | None = None, realism: float = 0.0
) -> None:
    """Raises FormatError where a decode of that size, of the first `steps` steps if given, has more pixels or network calls
    (those of the ODE too where `realism` is above 0) than `limits` allow; a thousand codewords that are made one by one
    count as one call. Nothing is made for it."""
    from noisebook.codec.realism import ODE_STEPS
    from noisebook.codec.solvers import nfe_of

    calls = nfe_of(spec, steps) + (ODE_STEPS - 1 if realism else 0)
    if spec.codebook == "independent" or spec.rule == "pursuit":  # made one by one, not by one transform for all
        calls += sum(run.count for _, run in spec.runs_for(height, width)) // (CODEWORDS * spec.blocks)
    for what, value, name in (
        (f"a decode of {height} x {width} has pixels:", height * width, "pixels"),
        ("its decode takes network calls:", calls, "network_calls"),
    ):
        if words := too_much(what, value, limits, name):
            raise FormatError(words)


def refuse_costly(
    codec: "Codec", size: tuple[int, int], limits: Limits = DEFAULT, steps: int | None = None, realism: float = 0.0
) -> None:
    """`check_decode` of images of that (height, width), and of what they are padded to: blocks may pad far."""
    check_decode(codec.spec, *size, limits, steps, realism)
    check_decode(codec.spec, *codec.stream(*size).padded, limits, steps, realism)


def check_codec(codec: "Codec", container: Container) -> None:
    """Raises CodecMismatchError where the file was made by another codec: its tokens would decode to noise."""
    size, wanted = (container.height, container.width), container.codec_hash
    if wanted in (codec.spec.hash, codec.spec_for(*size).hash) or any(a.spec.hash == wanted for a in codec.aliases()):
        return
    raise CodecMismatchError(
        f"the file was made by another codec ({wanted.hex()}, this one is {codec.spec.hash.hex()}): "
        "noisebook.images.files.spec_of(container) gives the specification of the file, and noisebook.load(it) its codec"
    )


def decode_picture(
    codec: "Codec", container: Container, steps: int | None = None, limits: Limits = DEFAULT, realism: float = 0.0
) -> "np.ndarray":
    """A file of this codec -> uint8 [H, W, C], rounded to nearest; of its first `steps` steps only, if given; `realism` from
    0 to 1 as of `Codec.decode`. Raises FormatError where the payload does not fit, and, before anything is allocated, as
    `refuse_costly`, and what `Codec.decode` raises."""
    import numpy as np
    import torch

    size = (container.height, container.width)
    refuse_costly(codec, size, limits, steps, realism)
    check_codec(codec, container)
    payload = torch.from_numpy(np.frombuffer(container.payload, np.uint8).copy())
    image = codec.decode_packed(payload[None], size, steps, limits, realism)[0]
    return pixels_of(image)


def _tensors(pixels: "np.ndarray", weights: "np.ndarray | None") -> "tuple[torch.Tensor, torch.Tensor | None]":
    import torch

    if pixels.ndim != 3:
        hint = ", that is pixels[..., None]" if pixels.ndim == 2 else ""
        raise ImageError(f"a picture is uint8 [H, W, C], not {list(pixels.shape)}: a grey one is [H, W, 1]{hint}")
    counts = None if weights is None else torch.from_numpy(weights.copy())[None, None].float()
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], counts


def pixels_of(images: "torch.Tensor") -> "np.ndarray":
    """What a codec decodes, float32 [..., C, H, W] -> uint8 [..., H, W, C], rounded to nearest."""
    from noisebook.runtime.pixels import to_uint8

    return to_uint8(images).movedim(-3, -1).cpu().numpy()


def spec_of(container: Container) -> CodecSpec | None:
    """The specification of a file: embedded, or of its preset; None if this version knows neither."""
    if container.derived is not None:
        curve = curves.by_number(container.preset)
        if curve is None:
            return None
        spec = derived_spec(curve, container.derived, container.height, container.width)
        if spec.hash != container.codec_hash:
            raise FormatError("the derived specification does not match the codec hash: the file is damaged")
        return spec
    if container.spec_json is None:
        preset = presets.by_hash(container.codec_hash)
        return preset.spec if preset else None
    spec = CodecSpec.from_json(container.spec_json)
    if spec.hash != container.codec_hash:
        raise FormatError("the embedded specification does not match the codec hash: the file is damaged")
    return spec


def derived_spec(curve: curves.Curve, derived: Derived, height: int, width: int) -> CodecSpec:
    """The specification that a file of that size derives from a curve. Raises SpecError for too few tokens."""
    steps, tokens = derived[:2]
    return curves.spec_for(curve.scaled(scaling_of(derived)), curve.dims(height, width), tokens, steps)


def scale_of(container: Container) -> float | None:
    """What the errors of its curve are multiplied by in a file whose specification is derived; None in any other."""
    return None if container.derived is None else curves.SCALES[scaling_of(container.derived)]


def codec_name(spec: CodecSpec) -> str:
    """A codec in words, for messages."""
    preset = presets.by_hash(spec.hash)
    name = f"preset {preset.name!r}" if preset else "a custom codec"
    return f"{name} on backbone {spec.backbone!r} ({spec.fingerprint[:16]})"


def describe(path: Path, limits: Limits = DEFAULT) -> dict[str, Any]:
    """Everything a file says, without a backbone. Raises FormatError for a damaged one, and for one that is more work to
    parse than `limits` allow."""
    data = read_file(path)
    container = Container.from_bytes(data)
    spec, size = spec_of(container), len(data)
    del data
    out = {
        "name": str(path),
        "bytes": size,
        "height": container.height,
        "width": container.width,
        "bpp": 8 * size / (container.height * container.width),
        "payload_bytes": len(container.payload),
        "preset": container.preset,
        "codec_hash": container.codec_hash.hex(),
        "embedded_spec": container.spec_json is not None,
        "derived": container.derived,
        "robust": container.robust,
        "curve_scale": scale_of(container),
        "codec": None,
        "tokens": None,
        "error": None,
    }
    if spec is not None:
        tokens = unpack(container.payload, token_runs(spec, container.height, container.width), limits)
        out |= {
            "codec": codec_name(spec),
            "tokens": len(tokens),
            "steps": len(spec.schedule),
            "rule": spec.rule,
            "codebook": spec.codebook,
            "vocab_size": spec.vocab_size,
            "seed": spec.seed,
            "solver": spec.solver,
            "first_tokens": tokens[:16].tolist(),
        }
    return out
