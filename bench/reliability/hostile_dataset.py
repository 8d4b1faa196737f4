"""Hostile data sets: every field of plan, ledger and shard, with right checksums throughout."""

import contextlib
import copy
import hashlib
import io
import json
from typing import Any

import numpy as np

from bench.reliability.hostile_kit import Case, Command, Place
from bench.reliability.hostile_values import Rng, mutated, nasty, some, string
from noisebook.datasets.ledger import read_ledger
from noisebook.datasets.plan import Plan
from noisebook.datasets.store import Store
from noisebook.datasets.table import read_shard
from noisebook.errors import NoisebookError

VERIFY = (5.0, 300.0)  # seconds and MiB
READ = (30.0, 1000.0)
WRITTEN = {"compression": "zstd", "write_page_checksum": True}
Model = dict[str, Any]


def load(folder: Any) -> Model:
    """A finished data set as lists and dicts: plan, its two tables, and for each shard columns, types, footer and entry."""
    import pyarrow.parquet as pq

    plan = json.loads((folder / "plan.json").read_text())
    tables = {name: pq.read_table(folder / f"plan-{name}.parquet") for name in ("items", "files")}
    shards = []
    for path in sorted((folder / "shards").glob("*.parquet")):
        rows = pq.read_table(path)
        entry = json.loads((folder / f"ledger/{path.stem}.json").read_text())["entry"]
        footer = json.loads(rows.schema.metadata[b"noisebook"])
        shards.append({"columns": rows.to_pydict(), "schema": rows.schema, "footer": footer, "entry": entry})
    return {
        "plan": plan,
        "schemas": {name: table.schema for name, table in tables.items()},
        **{name: table.to_pydict() for name, table in tables.items()},
        "shards": shards,
    }


def array(values: Any, kind: Any) -> Any:
    """A column of that type where the values allow it, else of whatever type they have, else of text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for attempt in (lambda: pa.array(values, kind), lambda: pa.array(values)):
        try:
            made = attempt()
            pq.write_table(pa.table({"x": made.slice(0, 3)}), io.BytesIO())  # not every type has a form in Parquet
            return made
        except (pa.ArrowException, TypeError, ValueError, OverflowError, UnicodeError):
            continue
    return pa.array([str(v)[:1000].encode("utf-8", "replace").decode() for v in values])


def parquet(columns: Any, schema: Any, footer: Any = None, **how: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays, names = [], []
    for name, values in columns.items():
        if isinstance(values, list):
            text = str(name).encode("utf-8", "replace").decode()
            arrays.append(array(values, schema.field(name).type if name in schema.names else None))
            names.append(text)
    most = max((len(a) for a in arrays), default=0)
    arrays = [pa.concat_arrays([a, pa.nulls(most - len(a), a.type)]) if len(a) < most else a for a in arrays]
    table = pa.Table.from_arrays(arrays, names)
    if footer is not None:
        table = table.replace_schema_metadata({b"noisebook": json.dumps(footer, sort_keys=True).encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **{**WRITTEN, **how})
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def plan_hash(plan: Any, items: Any, files: Any) -> str:
    """As a plan's own hash is made, of whatever the fields hold."""
    about = {k: plan.get(k) for k in ("version", "settings", "kind", "columns", "image_column")}
    out = hashlib.sha256(json.dumps(about, sort_keys=True).encode())

    def rows(columns: Any, names: tuple[str, ...]) -> list[tuple]:
        lists = [columns.get(n, []) for n in names]
        return list(zip(*[v if isinstance(v, list) else [] for v in lists], strict=False))

    for row in rows(files, ("name", "size")) + rows(items, ("key", "file", "start", "size", "ending", "extra", "problem")):
        out.update(json.dumps(list(row)).encode())
    return out.hexdigest()


def seal(place: Place, model: Model, rng: Rng) -> None:
    """Writes the data set with every checksum right."""
    folder, plan = place.inputs / "ds", model["plan"]
    (folder / "shards").mkdir(parents=True)
    (folder / "ledger").mkdir()
    tables = {f"plan-{name}.parquet": parquet(model[name], model["schemas"][name]) for name in ("items", "files")}
    if rng.random() < 0.03:
        tables["plan-items.parquet"] = many_rows(model, rng)
    for name, data in tables.items():
        (folder / name).write_bytes(data)
    found = plan_hash(plan, model["items"], model["files"]) if isinstance(plan, dict) else ""
    if isinstance(plan, dict):
        plan["sha256"] = {name: digest(data) for name, data in tables.items()}
        if "hash" in plan:
            plan["hash"] = found
        names, stamps = model["files"].get("name"), model["files"].get("stamp")
        if "stamp" in plan and isinstance(names, list) and isinstance(stamps, list):
            plan["stamp"] = digest(json.dumps(list(zip(names, stamps, strict=False))).encode())
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8", errors="surrogatepass")
    for number, shard in enumerate(model["shards"]):
        footer, entry = shard["footer"], shard["entry"]
        if isinstance(footer, dict) and "plan" in footer:
            footer["plan"] = found
        size = int(rng.choice([1, 1024, 1 << 20]))
        data = parquet(shard["columns"], shard["schema"], footer, row_group_size=size, use_dictionary=rng.random() < 0.05)
        (folder / f"shards/{number:06d}.parquet").write_bytes(data)
        if isinstance(entry, dict):
            if "plan" in entry:
                entry["plan"] = found
            if "sha256" in entry:
                entry["sha256"] = digest(data)
            if "bytes" in entry:
                entry["bytes"] = len(data)
        text = json.dumps({"sha256_of_entry": digest(json.dumps(entry, sort_keys=True).encode()), "entry": entry})
        (folder / f"ledger/{number:06d}.json").write_text(text, encoding="utf-8", errors="surrogatepass")


def many_rows(model: Model, rng: Rng) -> bytes:
    """Few bytes, very many items."""
    count = int(rng.choice([100_000, 2_000_000]))
    schema = model["schemas"]["items"]
    first = {f.name: model["items"].get(f.name) for f in schema}
    return parquet({name: [v[0] if isinstance(v, list) else ""] * count for name, v in first.items()}, schema)


def fill_columns(columns: Any, rng: Rng, place: Place, count: int, mild: bool) -> None:
    """Some values of some columns are nasty, of the column's own type most often; or all of a column."""
    for _ in range(count):
        names = [n for n, v in columns.items() if isinstance(v, list) and v]
        if not names:
            return
        name = names[rng.integers(len(names))]
        values = columns[name]
        how = some(rng, *((3, 1) if mild else (8, 1, 1, 1, 0.5)))
        like = next((v for v in values if v is not None), None)
        if how == 0:
            values[rng.integers(len(values))] = nasty(rng, place.traps, like, mild)
        elif how == 1:
            columns[name] = [nasty(rng, place.traps, like, mild)] * len(values)
        elif how == 2:
            del columns[name]
        elif how == 3:
            columns[name] = values * int(rng.choice([2, 50]))
        else:
            columns[string(rng, place.traps)[:200]] = values


def damage(model: Model, rng: Rng, place: Place, focus: str) -> None:
    count, mild = 1 + some(rng, 3, 1, 1), rng.random() < 0.6
    if focus == "plan":
        how = some(rng, 3, 2, 3)
        if how == 0:
            model["plan"] = mutated(model["plan"], rng, place.traps, count)
        else:
            table = model["files" if how == 1 else "items"]
            if rng.random() < 0.5:  # paths, names and keys lead to the traps
                for name in ("path", "name") if how == 1 else ("key",):
                    table[name] = [string(rng, place.traps) for _ in table[name]]
            else:
                fill_columns(table, rng, place, count, mild)
        return
    shard = model["shards"][rng.integers(len(model["shards"]))]
    if focus == "ledger":
        shard["entry"] = mutated(shard["entry"], rng, place.traps, count, mild)
        return
    how = some(rng, 4, 1, 1)
    if how == 0:
        fill_columns(shard["columns"], rng, place, count, mild)
    elif how == 1:
        shard["footer"] = mutated(shard["footer"], rng, place.traps, count, mild)
    else:  # far more than its bytes say
        big = int(rng.choice([1 << 12, 1 << 16, 1 << 20]))
        shard["columns"][str(rng.choice(["label", "x", "key"]))] = ["0" * big] * len(shard["columns"]["height"])


def passes(folder: Any, focus: str) -> bool:
    try:
        store = Store(str(folder))
        if Plan.load(store) is None:
            return False
        if focus == "ledger":
            return all(read_ledger(store, n) is not None for n in range(2))
        if focus == "shard":
            for path in sorted((folder / "shards").glob("*.parquet")):
                read_shard(path.read_bytes(), "shard")
        return True
    except (NoisebookError, AttributeError):
        return False


def make(place: Place, rng: Rng, focus: str) -> Case:
    bases = place.base["datasets"]
    model = copy.deepcopy(bases[rng.integers(len(bases))])
    if focus != "plan" or rng.random() < 0.9:
        damage(model, rng, place, focus)
    seal(place, model, rng)
    folder, out = str(place.inputs / "ds"), str(place.outputs / "o")
    bounded = ["--max-pixels", "70000"]
    commands = [Command(["verify", folder], *VERIFY)]
    choice = some(rng, 3, 3, 3, 2)
    if choice == 0:
        commands.append(Command(["detokenize", folder, "-o", out, *bounded], *READ))
    elif choice == 1:
        inputs = ["--inputs", str(place.inputs / "pictures")] if rng.random() < 0.5 else []
        commands.append(Command(["report", folder, "-o", out + ".html", "--images", "2", *inputs, *bounded], *READ))
    elif choice == 2:
        form = str(rng.choice(["webdataset", "npy", "megatron"]))
        commands.append(Command(["export", folder, "-o", out, "--format", form], *READ))
    return Case(passes(place.inputs / "ds", focus), commands, focus)


def make_plan(place: Place, rng: Rng) -> Case:
    return make(place, rng, "plan")


def make_ledger(place: Place, rng: Rng) -> Case:
    return make(place, rng, "ledger")


def make_shard(place: Place, rng: Rng) -> Case:
    return make(place, rng, "shard")


def bases(place: Place) -> list[Model]:
    """Small data sets of each kind of input, made by the real command."""
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet as pq

    from bench.reliability.hostile_models import FEW
    from noisebook.cli.main import main
    from noisebook.images.io import png_bytes

    rng = np.random.default_rng(0)
    folder = place.root / "base"
    pictures = folder / "pictures"
    (pictures / "a").mkdir(parents=True)
    data = [png_bytes(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(5)]
    for i, one in enumerate(data):
        (pictures / f"a/{i}.png").write_bytes(one if i != 3 else b"no picture")
    with tarfile.open(folder / "t.tar", "w") as archive:
        for i, one in enumerate(data):
            for name, content in ((f"{i}.png", one), (f"{i}.cls", b"7")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    pq.write_table(pa.table({"image": pa.array(data, pa.binary()), "label": list(range(5))}), folder / "p.parquet")
    poisson = ["--rule", "poisson", "--vocab-size", "65536", "--budget", "20", "--budget-last", "20"]
    codec = ["--backbone", "gaussian-prior", *FEW, "--workers", "0", "--shard-size", "3"]
    made = []
    for i, (source, more) in enumerate(((pictures, []), (folder / "t.tar", []), (folder / "p.parquet", poisson))):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = main(["tokenize", str(source), "-o", str(folder / f"ds{i}"), *codec, *more])
        if code not in (0, 3):
            raise RuntimeError(f"the data set of {source} could not be made: exit code {code}")
        made.append(load(folder / f"ds{i}"))
    return made
