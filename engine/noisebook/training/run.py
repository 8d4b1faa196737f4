"""Training from beginning to end: a `TrainingJob` to a folder with a checkpoint."""

from pathlib import Path
from typing import Any

from noisebook.errors import TrainingError
from noisebook.images.archive import load_npz_images
from noisebook.runtime.atomic import folder_lock
from noisebook.runtime.devices import usable_device
from noisebook.runtime.limits import DEFAULT, Limits
from noisebook.training import start
from noisebook.training.job import TrainingJob
from noisebook.training.loop import TrainingSettings, train


def run_training(job: TrainingJob, limits: Limits = DEFAULT) -> dict[str, Any]:
    """Trains as the job says, or goes on with a run of the same job in its folder. Returns the checkpoint's path as
    "output", the device, and the last line of the log. `limits`: `pixels` of an image.

    Raises TrainingError, BackboneError, ImageError, or SpecError for a device that cannot be used.
    """
    usable_device(job.device)
    images = load_npz_images(job.data, limits=limits)
    if len(images) <= job.held_out:
        raise TrainingError(f"{len(images)} images are too few: the last {job.held_out} are held out, see --held-out")
    begin = (start.cod_model if job.objective == "cod" else start.denoiser)(job, images)
    output = Path(job.output)
    settings = settings_of(job)
    with folder_lock(output):
        log = train(begin.new_model, begin.objective, images, output, begin.write, settings, job.device, job.save_every)
    return {"output": str(output / "model.safetensors"), "device": job.device, **log[-1]}


def settings_of(job: TrainingJob) -> TrainingSettings:
    """The numbers that the loop needs."""
    return TrainingSettings(
        minutes=job.minutes,
        sizes=tuple(job.sizes),
        pixels=job.pixels,
        learning_rate=job.learning_rate,
        optimizer=job.optimizer,
        dtype=job.dtype or ("bfloat16" if job.device.startswith("cuda") else "float32"),
        seed=job.seed,
        held_out=job.held_out,
        recipe=job.recipe,
    )
