"""The parts of a folder as they were read, and the fingerprint that they make.

The fingerprint is the SHA-256 of canonical JSON that says: version 2 of fingerprints; of each part its class, its public
config and the hashes of its weight files in the order in which they are read (of tensors of one name the last counts); the
scheduler's config; and the conditions. A file's hash is that of all its bytes, see runtime/hashes.py. So it is the same for
the same folder anywhere, also under another name; the same tensors in other files (in other shards, with other metadata)
have another.

Version 1 hashed the tensors, one after the other, which took most of the time of loading a large model. It is made again
only where a file has another fingerprint than the model, see `Backbone.answers_to`.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from noisebook.backbones.base import Backbone, fingerprint_of
from noisebook.backbones.checkpoint import one_line
from noisebook.backbones.foreign import what_is
from noisebook.errors import BackboneError, printable
from noisebook.runtime.hashes import FileChangedError, Stamp, check_unchanged, hashes_of

VERSION = 2


@dataclass(frozen=True)
class Part:
    """A model in a folder: the class it is read as, its public config, and its weight files as they were then."""

    kind: str
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    stamps: tuple[Stamp, ...]

    @classmethod
    def of(cls, kind: str, config: Mapping[str, Any], files: Sequence[Path]) -> "Part":
        """Raises BackboneError where a file is missing."""
        for path in files:
            if not path.is_file():
                raise BackboneError(f"{path.parent}: no {path.name}, a shard that the index names")
        with _readable():
            return cls(kind, config, tuple(files), tuple(map(Stamp.of, files)))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors as stored, on the CPU; their memory is that of the files. Raises BackboneError for a damaged file, or
        one of another kind."""
        tensors: dict[str, Tensor] = {}
        for path in self.files:
            try:
                tensors.update(load_file(path))
            except (SafetensorError, OSError) as error:
                raise BackboneError(f"{path}: damaged or no safetensors file ({one_line(error)}){what_is(path)}") from error
        return tensors

    def version_1(self) -> str:
        """What the first version of fingerprints says of it. Raises BackboneError where its files have changed."""
        self.check_unchanged()
        digest = fingerprint_of(self.config, self.tensors())
        self.check_unchanged()
        return digest

    def check_unchanged(self) -> None:
        """Raises BackboneError where its files are not those any more that were read."""
        with _readable():
            for file, stamp in zip(self.files, self.stamps, strict=True):
                check_unchanged(file, stamp)


@contextmanager
def _readable() -> Iterator[None]:
    """What is wrong with a file inside the `with` block, as BackboneError."""
    try:
        yield
    except FileChangedError as error:
        raise BackboneError(f"{printable(error, 400)}: load the model again") from error
    except OSError as error:
        raise BackboneError(f"{printable(error, 400)}: a weight file cannot be read") from error


def identify_latent(backbone: Backbone, parts: Mapping[str, Part], header: Mapping[str, Any]) -> None:
    """Gives a backbone of several parts its fingerprint; `header` is all that is no part. Raises BackboneError where a file
    has changed since it was read."""
    backbone.identify_as(_version_2(parts, header), partial(_version_1_of_latent, dict(parts), header))


def identify_plain(backbone: Backbone, part: Part, schedule: Mapping[str, Any], kind: str, more: Mapping[str, Any]) -> None:
    """The same for a single model of pixels, whatever its part is called; `schedule` is the public config of a scheduler of
    class `kind`, `more` all else."""
    now = _version_2({"network": part}, {"scheduler": {**schedule, "class": kind}, **more})
    backbone.identify_as(now, partial(_version_1_of_plain, part, {"scheduler": schedule, **more}))


def _version_2(parts: Mapping[str, Part], header: Mapping[str, Any]) -> str:
    files = [file for part in parts.values() for file in part.files]
    with _readable():
        hashes = iter(hashes_of(files, [stamp for part in parts.values() for stamp in part.stamps]))
    said = {
        name: {"class": part.kind, "config": part.config, "files": [next(hashes) for _ in part.files]}
        for name, part in parts.items()
    }
    return fingerprint_of({"fingerprint": VERSION, "parts": said, **header}, {})


def _version_1_of_latent(parts: Mapping[str, Part], header: Mapping[str, Any]) -> str:
    with ThreadPoolExecutor(len(parts)) as pool:
        digests = pool.map(Part.version_1, parts.values())
        return fingerprint_of({"parts": dict(zip(parts, digests, strict=True)), **header}, {})


def _version_1_of_plain(part: Part, header: Mapping[str, Any]) -> str:
    part.check_unchanged()
    digest = fingerprint_of({"config": part.config, **header}, part.tensors())
    part.check_unchanged()
    return digest
