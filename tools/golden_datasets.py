"""Golden tokenised data sets, one for each kind of input and one half-finished: python tools/golden_datasets.py --write

What is in tests/golden/dataset-v1 was written once, and data sets of users look like it: if test_golden_datasets.py fails,
it is the reader, or what resumes, that is wrong. --write is for a new data set: it leaves alone what is there.

inputs/         the pictures; their times of change are part of a plan, so `copied` sets them
NAME/           a data set, made at PLACE by `noisebook tokenize` with OPTIONS[NAME]
decoded/NAME/   what `noisebook detokenize` made of it
expected.json   keys, tokens and hashes
"""

import argparse
import hashlib
import io
import json
import os
import platform
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from noisebook.cli.main import main as run
from noisebook.datasets import TokenDataset

FOLDER = Path(__file__).resolve().parents[1] / "tests/golden/dataset-v1"
EXPECTED = FOLDER / "expected.json"
PLACE = Path("/tmp/dataset-v1")  # where all is made: the paths of inputs stand in the plans
MTIME = 1_700_000_000
BROKEN = "blue/1.png"  # in the first shard: with --max-errors 0 a run ends after it
START = ["--start-budget", "4", "--start-vocab-size", "256"]
SMALL = ["--backbone", "gaussian-prior", "--steps", "3", "--scale-pixels", "0", *START]
BINS = [*SMALL, "--budget", "8", "--budget-last", "8", "--vocab-size", "256"]
TOP = [*SMALL, "--rule", "top", "--budget", "6", "--budget-last", "6", "--vocab-size", "512", "--columns", "2"]
HEUN = ["--solver", "heun", "--solver-steps", "2"]
POISSON = [*SMALL, "--rule", "poisson", "--budget", "30", "--budget-last", "30", "--vocab-size", "512"]
#: data set -> its input and the options it was made with
OPTIONS = {
    "pictures": ["inputs/pictures", *BINS],
    "pictures-half": ["inputs/pictures", *BINS],
    "webdataset": ["inputs/samples.tar", *TOP, *HEUN],
    "parquet": ["inputs/rows.parquet", *POISSON],
    "unlike": ["inputs/unlike.tar", *BINS],
    "hidden": ["inputs/hidden", *BINS],
}
HALF = "pictures-half"
HOW = ["--shard-size", "3", "--batch-size", "2", "--workers", "0"]


def resume(name: str) -> int:
    """Goes on with a data set in the working directory; the exit code."""
    return run(["tokenize", *OPTIONS[name], "-o", name, "--resume", *HOW])


def copied(folder: Path) -> Path:
    """A copy of all that is here, its inputs as old as they were."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    for path in (folder / "inputs").rglob("*"):
        os.utime(path, (MTIME, MTIME))
    return folder


# ---- making them -----------------------------------------------------------------------------------------------------
def picture(rng: np.random.Generator, height: int, width: int) -> bytes:
    """A random smooth picture as a PNG file."""
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def write_inputs(folder: Path) -> None:
    """Pictures of several sizes in two folders, one of them broken; a tar of pictures with classes and texts; a Parquet
    file of pictures with two columns more."""
    rng = np.random.default_rng(0)
    for i in range(9):
        path = folder / "pictures" / f"{'blue' if i < 4 else 'red'}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = picture(rng, int(rng.integers(16, 25)), int(rng.integers(16, 25)))
        path.write_bytes(data[: len(data) // 2] if path.match(BROKEN) else data)
    with tarfile.open(folder / "samples.tar", "w") as tar:
        for i in range(8):
            parts = {"png": picture(rng, 16, 20), "cls": str(i % 3).encode(), "txt": f"picture {i}".encode()}
            for ending, data in parts.items():
                info = tarfile.TarInfo(f"{i:03d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    images = [{"bytes": picture(rng, 16, 16), "path": None} for _ in range(7)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"label": pa.array(range(7), pa.int16()), "caption": [f"row {i}" for i in range(7)]}
    pq.write_table(pa.table({"image": pa.array(images, kind), **columns}), folder / "rows.parquet")


def write_unlike_inputs(folder: Path) -> None:
    """What plans of version 1 hold otherwise than later ones: a tar of names with dots, names twice, two pictures of a stem,
    a link and words as classes; a folder with thumbnails, and with pictures whose endings were not known."""
    rng = np.random.default_rng(1)
    names = ["000.png", "000.cls", "001.depth.png", "001.png", "IMG.0.png", "IMG.1.png", "002.png", "003.png", "004.png"]
    names += ["004.bmp", "._006.png", "006.png", "006.cls", "007.png", "002.png"]
    with tarfile.open(folder / "unlike.tar", "w") as tar:
        for name in names:
            data = b"a word" if name == "000.cls" else b"5" if name == "006.cls" else picture(rng, 16, 18)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("005.png")
        link.type, link.linkname = tarfile.LNKTYPE, "000.png"
        tar.addfile(link)
    for i, name in enumerate(
        ["blue/0.png", ".thumbnails/0.png", "red/8.png", "red/._8.png", "blue/1.jfif", "a.png", "b.png"]
    ):
        path = folder / "hidden" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(rng, 16, 16 + i % 2))
    (folder / "hidden/notes.txt").write_text("a note")
    (folder / "hidden/red/7.png").write_bytes(picture(rng, 16, 16))


def write_dataset(name: str) -> None:
    """Makes a data set at PLACE, and copies it here."""
    os.chdir(copied(PLACE))
    platform.node = lambda: "example"  # the ledger holds the name of the machine
    stop = ["--max-errors", "0"] if name == HALF else []
    code = run(["tokenize", *OPTIONS[name], "-o", name, *HOW, "--dtype", "float32", *stop])
    if code not in (0, 3):  # 3: a picture has failed
        sys.exit(f"{name}: noisebook tokenize ended with {code}")
    shutil.copytree(PLACE / name, FOLDER / name, ignore=shutil.ignore_patterns(".*"))
    if name != HALF:  # the other one's pictures are its too
        if run(["detokenize", name, "-o", f"decoded/{name}"]):
            sys.exit(f"{name}: noisebook detokenize failed")
        shutil.copytree(PLACE / "decoded" / name, FOLDER / "decoded" / name)
    shutil.rmtree(PLACE)


def expected_of(name: str) -> dict:
    """What a data set says."""
    data = TokenDataset(str(FOLDER / name), partial=name == HALF)
    decoded = sorted((FOLDER / "decoded" / name).rglob("*.png"))
    return {
        "rows": [{**row, "tokens": row["tokens"].tolist()} for row in data],
        "failed": {failure["key"]: failure["code"] for entry in data.done for failure in entry["failed"]},
        "shards": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((FOLDER / name / "shards").iterdir())},
        "pictures": [p.relative_to(FOLDER / "decoded" / name).as_posix() for p in decoded],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the data sets that are not there yet")
    if not parser.parse_args().write:
        sys.exit("give --write to write the golden data sets that are not there yet")
    if PLACE.exists():
        sys.exit(f"{PLACE} is there: remove it first")
    if not (FOLDER / "inputs").exists():
        write_inputs(FOLDER / "inputs")
    if not (FOLDER / "inputs/unlike.tar").exists():
        write_unlike_inputs(FOLDER / "inputs")
    expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    for name in OPTIONS:
        if not (FOLDER / name).exists():
            write_dataset(name)
            expected[name] = expected_of(name)
    lines = [f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in expected.items()]
    EXPECTED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
