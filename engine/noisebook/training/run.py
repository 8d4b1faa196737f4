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
    begins = {"cod": start.cod_model, "realism": start.realism_network}
    output = Path(job.output)
    begin = begins.get(job.objective, start.denoiser)(job, images)
    settings = settings_of(job, begin.recipe)
    with folder_lock(output):
        whole = (begin.new_model, begin.objective, images, output, begin.write, settings)
        log = train(*whole, job.device, job.save_every, begin.measure, job.compile)
    return {"output": str(output / "model.safetensors"), "device": job.device, **log[-1]}


def settings_of(job: TrainingJob, recipe: str = "") -> TrainingSettings:
    """The numbers that the loop needs; `recipe`: what the run's says beside the job's own."""
    return TrainingSettings(
        minutes=job.minutes,
        sizes=job.crops,
        pixels=job.pixels,
        learning_rate=job.learning_rate,
        optimizer=job.optimizer,
        decay=0.999 if job.objective == "realism" else TrainingSettings.decay,
        dtype=job.number_type,
        seed=job.seed,
        held_out=job.held_out,
        random_sizes=job.random_sizes,
        shrink=job.shrink,
        recipe=f"{job.recipe} {recipe}".strip(),
    )
