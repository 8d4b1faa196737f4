"""Tokens in the formats that people load: WebDataset tars, npy, Megatron's .bin and .idx."""

import io
import json
import os
import shutil
import struct
import tarfile
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from noisebook.datasets.reader import TokenDataset
from noisebook.datasets.table import largest_dtype
from noisebook.errors import DatasetError, SpecError, first_line, printable
from noisebook.runtime.limits import DEFAULT, Limits

FORMATS = ("webdataset", "npy", "megatron")
MEGATRON = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8}


def export(folder: str, output: str | Path, form: str, partial: bool = False, limits: Limits = DEFAULT) -> dict[str, Any]:
    """Writes the data set `folder` to `output`, whole or not at all; returns {"output", "images", "tokens"}.

    webdataset  a folder of tars, one per shard: KEY.tokens.npy (unsigned [L]) and KEY.json (size, label, ...); slashes in
                keys become "__", dots "_", and a name that is taken by then ends in "__2", ...: KEY.json has the key
    npy         a folder: tokens.npy [N, L], where all images have L tokens, and rows.jsonl
    megatron    a folder: tokens.bin and tokens.idx, each image a document of one sequence (format of
                Megatron-LM's IndexedDataset, version 1), and rows.jsonl

    A folder that is there and empty is filled when all is made, file by file. Raises DatasetError where `output` is anything
    else, SpecError for npy of images that differ in their
    number of tokens. `limits`: as of `TokenDataset`.
    """
    if form not in FORMATS:
        raise SpecError(f"format must be one of {', '.join(FORMATS)}, not {form!r}")
    data, output = TokenDataset(folder, partial, limits=limits), Path(output)
    there = _refuse_unless_empty(output)
    name = f".{output.name[:32]}.{os.getpid()}.tmp"
    unfinished = output / name if there else output.with_name(name)  # a folder that is there may be the root of a disk
    try:
        unfinished.mkdir(parents=True)
        tokens = {"webdataset": _webdataset, "npy": _npy, "megatron": _megatron}[form](data, unfinished)
        if there:
            _refuse_unless_empty(output, name)
            for made in sorted(unfinished.iterdir()):
                os.replace(made, output / made.name)
        else:
            os.replace(unfinished, output)
    except OSError as error:
        raise DatasetError(f"{printable(output)}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return {"output": str(output), "images": len(data), "tokens": tokens}


def _refuse_unless_empty(output: Path, own: str = "") -> bool:
    """Whether the folder is there. Raises DatasetError where something else is, or is in it, beside `own`."""
    if not os.path.lexists(output):
        return False
    try:
        names = set(os.listdir(output)) - {own}
    except OSError as error:
        why = error.strerror or first_line(error)
        raise DatasetError(f"{printable(output)}: cannot be the folder of an export ({why}): choose another -o") from error
    if names:
        what = printable(min(names), 100)
        raise DatasetError(
            f"{printable(output)}: something is there already ({what}): choose an empty folder, or another -o"
        )
    return True


def _rows(data: TokenDataset, shard: dict[str, Any]) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """(all but the tokens, tokens). Raises FormatError for tokens that are none of the codec's."""
    for row in data.checked(shard):
        yield {k: v for k, v in row.items() if k != "tokens"}, row["tokens"]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, default=_plain)


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)


def _webdataset(data: TokenDataset, folder: Path) -> int:
    total = 0
    for entry in data.done:
        taken: set[str] = set()
        with (
            open(folder / f"{entry['shard']:06d}.tar", "wb") as f,
            tarfile.open(fileobj=f, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for row, tokens in _rows(data, entry):
                buffer = io.BytesIO()
                np.save(buffer, tokens)
                stem = _stem(row["key"], taken)
                for name, content in ((f"{stem}.tokens.npy", buffer.getvalue()), (f"{stem}.json", _line(row).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                total += len(tokens)
            _sync(f)
    return total


def _stem(key: str, taken: set[str]) -> str:
    """A sample's name in its tar: WebDataset cuts names at the first dot, and neighbours of equal names are one sample."""
    plain = key.replace("/", "__").replace(".", "_")
    stem = next(name for name in chain([plain], (f"{plain}__{n}" for n in count(2))) if name not in taken)
    taken.add(stem)
    return stem


def _npy(data: TokenDataset, folder: Path) -> int:
    length, dtype = None, largest_dtype(data.spec)
    with open(folder / "tokens.npy", "wb") as f, open(folder / "rows.jsonl", "w", encoding="utf-8") as lines:
        for entry in data.done:
            for row, tokens in _rows(data, entry):
                if length is None:
                    length = len(tokens)
                    header = {"descr": dtype.str, "fortran_order": False, "shape": (len(data), length)}
                    np.lib.format.write_array_header_1_0(f, header)
                if len(tokens) != length:
                    raise SpecError(
                        f"{printable(row['key'])} has {len(tokens)} tokens, others {length}: export as webdataset or "
                        "megatron, or tokenize with --resize"
                    )
                f.write(tokens.astype(dtype).tobytes())
                lines.write(_line(row) + "\n")
        if length is None:
            np.save(f, np.empty((0, 0), dtype))
        _sync(f)
        _sync(lines)
    return len(data) * (length or 0)


def _megatron(data: TokenDataset, folder: Path) -> int:
    dtype = np.dtype(
        next(
            t
            for t in ("uint8", "uint16", "int32", "int64")
            if np.iinfo(t).max >= np.iinfo(largest_dtype(data.spec)).max or t == "int64"
        )
    )
    lengths: list[int] = []
    with open(folder / "tokens.bin", "wb") as f, open(folder / "rows.jsonl", "w", encoding="utf-8") as lines:
        for entry in data.done:
            for row, tokens in _rows(data, entry):
                f.write(tokens.astype(dtype).tobytes())
                lengths.append(len(tokens))
                lines.write(_line(row) + "\n")
        _sync(f)
        _sync(lines)
    sizes = np.array(lengths, np.int32)
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)[:-1]]) if len(sizes) else np.empty(0)
    with open(folder / "tokens.idx", "wb") as f:
        f.write(b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, MEGATRON[dtype.name]))
        f.write(struct.pack("<QQ", len(sizes), len(sizes) + 1))
        f.write(sizes.tobytes())
        f.write((starts * dtype.itemsize).astype(np.int64).tobytes())
        f.write(np.arange(len(sizes) + 1, dtype=np.int64).tobytes())
        _sync(f)
    return int(sizes.sum(dtype=np.int64))


def _sync(f: Any) -> None:
    f.flush()
    os.fsync(f.fileno())
