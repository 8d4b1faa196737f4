"""Tokenising a whole data set: the plan, what is done of it already, and who makes the rest."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from noisebook.codec.codec import Codec
from noisebook.datasets import choices, fleet, memory
from noisebook.datasets.decoding import Picture, requests_for
from noisebook.datasets.job import Job, Rank, local_device
from noisebook.datasets.ledger import LEDGER, SHARDS, states, summary
from noisebook.datasets.loader import Workers
from noisebook.datasets.plan import FILES, ITEMS, PLAN, VERSION, Plan, PlanSettings
from noisebook.datasets.progress import Progress
from noisebook.datasets.recipe import CodecMaker, CodecRecipe, CodecSource, OwnCodec, Size, recipe_of
from noisebook.datasets.shard import Tokenizer, versions
from noisebook.datasets.sources import Source, enumerate_inputs
from noisebook.datasets.store import Store
from noisebook.datasets.table import token_words
from noisebook.errors import DatasetError, SpecError, printable
from noisebook.images.folders import PassedOver
from noisebook.runtime.devices import every_gpu, named_devices
from noisebook.runtime.limits import DEFAULT, Limits

PathLike = str | os.PathLike[str]
Engine = Callable[[Tokenizer, list[int], Progress], None]  # makes these shards
Log = Callable[[str], None]

ENGINES = ("local", "ray")
PEEK = 64  # images that are looked at to find out whether all have one size
STRAYS = ("", SHARDS, LEDGER)  # folders in which killed processes leave temporary files


def tokenize(
    inputs: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    codec: CodecSource = "photo",
    engine: str = "local",
    device: str | Sequence[str] | None = None,
    resume: bool = False,
    input_format: str | None = None,
    image_column: str | None = None,
    image_suffix: str = "",
    drop_columns: str | Sequence[str] = (),
    resize: int = 0,
    mixed_sizes: bool = False,
    shard_size: int = 1000,
    batch_size: int | None = None,
    workers: int | None = 0,
    max_errors: int | None = None,
    rank: Rank | None = None,
    actors: int | None = None,
    retries: int = 2,
    log: Log | None = None,
    limits: Limits = DEFAULT,
) -> dict[str, Any]:
    """Tokenises a whole data set, or what is left of it: the command `noisebook tokenize` as a function. Equal options give
    the same plan and the same shards, byte for byte.

    inputs        a folder of pictures, WebDataset .tar files, or .parquet files with image bytes; or several; local, or URLs
                  that fsspec opens
    output        folder or URL of the data set: plan.json, shards/*.parquet (tokens: unsigned [L] per image), ledger/*.json
    codec         the name of a preset, a `CodecRecipe`, a function (device, size) -> Codec, where size is the (height,
                  width) of all images or None, or, with the engine local, a live Codec
    engine        local: this process, a child for each of several devices, or one of several ranks; ray: actors of a Ray
                  cluster, each with a codec of its own
    device        where codecs work (default: where the codec says; a function: cpu): a name, or several, as a list or with
                  commas (`cuda:0,cuda:1`). `cuda` is every GPU that is seen, but under torchrun that of the local rank, and
                  for a rank one only. Each of several devices has a child process, which imports the script that runs: that
                  needs `if __name__ == "__main__":`. A live codec works where it is; a function must be one that pickle
                  finds by its name
    resume        go on with what is there, or begin
    input_format  pictures, webdataset or parquet, where there are several
    image_column  Parquet: the column of the images (default: a struct with bytes, then image, jpg or png, then the first of
                  bytes that are pictures)
    image_suffix  pictures and tars: the ending of the pictures that are taken, `depth.png` (default: any)
    drop_columns  names of columns of the input that do not go along
    resize        scale the shorter side to that many pixels, and keep the square in the middle (0: no)
    mixed_sizes   take images of any size (default: only if the first 64 already differ; other sizes fail otherwise)
    shard_size    images per shard, the unit of work
    batch_size    images coded at once (None: 32; on CUDA, where all have one size, as many as have 8 megapixels together and
                  fit the GPU's memory, at most 1,024); a plan that is there has its own
    workers       processes that decode pictures, beside this one (0: none; None: up to 8 for each device, as cores allow);
                  shared out where there are several devices. They import the script that runs, which therefore needs
                  `if __name__ == "__main__":`
    max_errors    stop when more images have failed (default: never)
    rank          local: which of several equal processes this is (default: what torchrun or Slurm says)
    actors        ray: how many (default: one for each GPU, or for each two CPU cores)
    retries       of a shard whose actor, or whose process of several, died
    log           called with lines for people (default: the logger `noisebook.datasets`, level INFO)
    limits        of pictures (`pixels`), and the `memory` that this process and its workers may take; a picture that needs
                  more fails, and batches of large images are smaller, as the plan then says

    Returns the counts of this rank's shards: n_in = n_ok + n_failed images, failed_by_code, failed (the first 100 of them:
    key, code and message), remarks, shards, of_shards; and
    n_found = n_ok + n_failed + n_passed_over, where passed_over says why pictures were passed over (of all ranks the first
    counts them), and other_files how many other files there were of each ending.

    Raises SpecError (options or a codec that cannot be), DatasetError (another data set is there, the input has changed or
    cannot be read), ImageError (more than max_errors failures), BackboneError, NoisebookError where nothing can be written.
    An image that cannot be read or coded is no error: it is counted, and its ledger entry says why.
    """
    if engine not in ENGINES:
        raise SpecError(f"engine must be {' or '.join(ENGINES)}, not {engine!r}")
    log = log or logging.getLogger("noisebook.datasets").info
    rank = None if engine == "ray" else rank or Rank.of_environment()
    recipe, devices = _on_devices(codec, device, rank)
    job = Job(
        inputs=[os.fspath(path) for path in ([inputs] if isinstance(inputs, str | os.PathLike) else inputs)],
        output=os.fspath(output),
        resume=resume,
        input_format=input_format,
        image_column=image_column,
        image_suffix=image_suffix.lower().removeprefix("."),
        drop_columns=[drop_columns] if isinstance(drop_columns, str) else list(drop_columns),
        shard_size=shard_size,
        batch_size=batch_size,
        workers=choices.workers(len(devices)) if workers is None else workers,
        resize=resize,
        mixed_sizes=mixed_sizes,
        max_errors=max_errors,
        network=recipe.network(),
        limits=replace(limits, memory=limits.memory_bytes),
    )

    def maker(where: str) -> CodecMaker:
        return lambda size, network: recipe.load(size, network, where, log)

    if rank is not None and len(devices) == 1:
        return run_job(job, maker(devices[0]), log, None, rank)
    if rank is not None:
        crew = fleet.engine(recipe, devices, retries, log)
    else:
        from noisebook.datasets.ray import engine as ray_engine

        crew = ray_engine(recipe.load, recipe.device, actors, retries, log)
    return run_job(job, maker("cpu"), log, crew, Rank())  # the driver codes nothing, and may have no GPU


def _on_devices(
    codec: CodecSource, device: str | Sequence[str] | None, rank: Rank | None
) -> tuple[CodecRecipe | OwnCodec, list[str]]:
    """(how codecs are made, the devices on which they work); `rank`: None where Ray hands out the work.

    Raises SpecError for several devices where there can be one only."""
    names = named_devices(device if device is not None else codec.device if isinstance(codec, CodecRecipe) else "cpu")
    if len(names) > 1:
        if rank is None:
            raise SpecError("--engine ray finds the devices itself: give their kind only, --device cuda")
        if rank.world > 1:
            raise SpecError(f"this is rank {rank.number} of {rank.world}, and a rank works on one device, not {len(names)}")
        if isinstance(codec, Codec):
            raise SpecError("a live codec stays in its process: for several devices give a CodecRecipe")
    recipe = recipe_of(codec, names[0] if device is not None or len(names) > 1 else None, alive=rank is not None)
    if rank is None or isinstance(codec, Codec):
        return recipe, [recipe.device]
    if len(names) == 1:
        names = [local_device(recipe.device)]
    return recipe, every_gpu(names) if rank.world == 1 else names


def run_job(
    job: Job, make_codec: CodecMaker, log: Log, engine: Engine | None = None, rank: Rank | None = None
) -> dict[str, Any]:
    """What `tokenize` does when its codec is known.

    engine  makes the shards (default: this process)
    rank    makes every world-th shard only (default: as the environment says)
    """
    rank = rank or Rank.of_environment()
    store = Store(job.output)
    with store.lock(rank.number, rank.world):
        if rank.world == 1:
            store.collect_strays(STRAYS)
        plan, codec = make_plan(job, make_codec, store, log, here=engine is None)
        of_all = rank.number == 0  # what was passed over is of no shard: it is counted and said once
        left = PassedOver(Counter(plan.source.passed_over), Counter(plan.source.other_files)) if of_all else PassedOver()
        for line in left.lines():
            log(line)
        if of_all and (size := plan.settings.size) and (words := token_words(codec.spec_for(*size), *size)):
            log(words)
        mine = list(range(rank.number, plan.shards, rank.world))
        todo, done, failed = states(store, mine, plan.hash, log, versions())
        log(
            f"{done} shards done, {len(todo)} to do ({len(plan.source.items)} images, {plan.shards} shards"
            + (f", rank {rank.number} of {rank.world})" if rank.world > 1 else ")")
        )
        with Progress(store, rank, plan, todo) as progress:
            if todo:
                tokenizer = Tokenizer(plan, codec, store, job.workers, job.max_errors, failed, progress.tell, job.limits)
                try:
                    (engine or _here)(tokenizer, todo, progress)
                finally:
                    if rank.world == 1:  # what actors or children that were killed have left
                        store.collect_strays(STRAYS)
        counts = summary(store, mine, plan.hash, left.pictures)
        counts["other_files"] = dict(left.others)
        if len(store.names(LEDGER)) >= plan.shards:  # also those of other ranks: the last one finds them all
            total = counts if len(mine) == plan.shards else summary(store, range(plan.shards), plan.hash)
            if total["shards"] == plan.shards:
                plan.record(store, total["n_ok"], total["n_failed"])
    if counts["shards"] < len(mine):
        raise DatasetError(
            f"{printable(job.output)}: only {counts['shards']} of {len(mine)} shards are there at the end: somebody has "
            "removed or replaced the others: tokenize --resume makes them"
        )
    return counts


def _here(tokenizer: Tokenizer, todo: list[int], progress: Progress) -> None:
    tokenizer.run(todo)


def make_plan(
    job: Job, make_codec: CodecMaker, store: Store, log: Log = lambda _: None, here: bool = True
) -> tuple[Plan, Codec]:
    """(the plan, its codec), written to `store` unless it is there. `here`: whether this process does the work.

    Raises DatasetError where another plan is there, or the same without `resume`."""
    old = Plan.load(store, job.limits)
    if old is None:
        foreign = set(store.names()) - {PLAN, ITEMS, FILES, SHARDS, LEDGER}
        if [name for name in foreign if not name.startswith("events")]:
            raise DatasetError(
                f"{printable(job.output)}: something else is there ({printable(min(foreign))}): choose an empty folder"
            )
    elif not job.resume:
        raise DatasetError(
            f"{printable(job.output)}: a data set is there already: --resume goes on with it, another -o makes a new one"
        )
    known, version = (None, VERSION) if old is None else (old.source, old.version)
    asked, others = (job.input_format, job.image_column), (job.image_suffix, job.output, job.drop_columns)
    source = enumerate_inputs(job.inputs, *asked, known, job.limits, version, *others)
    if known is not None:  # what was counted then; the folder of the output was not there
        source = replace(source, passed_over=known.passed_over, other_files=known.other_files)
    sizes = _sizes(job, source) if old is None else None
    size = _size(job, sizes, old)
    recorded = None if old is None else old.settings.network
    codec = make_codec(size, {} if recorded is None else {**choices.UNSAID, **recorded})
    if old is not None and codec.spec.hash != old.settings.spec.hash:
        codec = codec.as_recorded(old.settings.spec)  # of an earlier noisebook, which called the same backbone otherwise
    all_sizes = {size} if size else sizes if sizes is not None and len(source.items) <= PEEK else None
    where = codec.backbone.device.type
    device = job.network.get("device", where)  # where actors are to work, the driver's codec is elsewhere
    if old is not None:
        batch_size, bound = job.batch_size or old.settings.batch_size, old.settings.batch_pixels
    else:
        batch_size = job.batch_size or choices.batch_size(device, size)
        bound = memory.batch_pixels(job.limits, device, batch_size, all_sizes)
    images = len(source.items)
    ways = {
        "dtype": lambda: choices.dtype(codec, device, log),
        "compile": lambda: choices.compiles(codec, device, size, images, log),
    }
    network = choices.chosen(job.network, recorded, ways)
    if here and recorded is None and job.network.get("compile") == "" and network["compile"] == "True":
        del codec
        codec = make_codec(size, network)
    if here:
        network = choices.with_dtype(network, codec)
    settings = PlanSettings(
        codec.spec, job.shard_size, batch_size, job.resize, size, dict(network), bound, job.image_suffix, job.drop_columns
    )
    plan = Plan(source, settings, VERSION if old is None else old.version, codec.backbone.factory)
    if old is None:
        plan.save(store, job.limits)
    else:
        old.refuse_unless_same(plan, job.output)
    return plan, codec


def _size(job: Job, sizes: set[Size] | None, old: Plan | None) -> Size | None:
    """The (height, width) that all images are to have, None where they may have any: that of the first images, if they have
    one."""
    if job.resize:
        return job.resize, job.resize
    if job.mixed_sizes:
        return None
    if old is not None:
        return old.settings.size
    return next(iter(sizes)) if sizes is not None and len(sizes) == 1 else None


def _sizes(job: Job, source: Source) -> set[Size] | None:
    """The (height, width) of the first images; None where they do not matter. They are decoded in workers: one of them may
    kill or hang its process."""
    if job.resize or (job.mixed_sizes and len(source.items) > PEEK):
        return None
    first = requests_for(source, source.items[:PEEK], 3, 0, job.limits)
    with Workers(job.workers, limits=job.limits) as workers:
        return {(answer.height, answer.width) for answer in workers.map(first) if isinstance(answer, Picture)}
