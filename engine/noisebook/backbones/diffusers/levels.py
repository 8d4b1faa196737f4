"""From a network and the config of diffusers' scheduler to the adapter of the family that the model was trained in."""

from typing import Any

from torch import nn

from noisebook.backbones.base import Backbone
from noisebook.backbones.checkpoint import one_line
from noisebook.backbones.diffusers.files import MISFIT
from noisebook.backbones.diffusers.nets import ScoreOfEps
from noisebook.backbones.extras import needs
from noisebook.backbones.families.consistency import Consistency
from noisebook.backbones.families.ddpm import DDPM
from noisebook.backbones.families.edm import EDM
from noisebook.backbones.families.flow import Flow
from noisebook.backbones.families.score import ScoreVE, ScoreVP
from noisebook.errors import BackboneError, printable

BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
MOST = 1_000_000  # training times of a model of discrete time: each has a level
SCORES = ("ScoreSdeVeScheduler", "ScoreSdeVpScheduler")


def is_flow(schedule: dict[str, Any]) -> bool:
    """Whether a scheduler's config is that of flow matching."""
    return str(schedule.get("_class_name")).startswith("FlowMatch") or bool(schedule.get("use_flow_sigmas"))


def adapter(net: nn.Module, schedule: dict[str, Any], place: Any, **shape: Any) -> Backbone:
    """`net` under the adapter that a scheduler's config asks for; `shape` are the options of `NetworkBackbone`.

    What only concerns sampling (spacing, shift, order, Karras levels) plays no part. Levels of discrete-time models are
    diffusers' own betas, multiplied up in float64. Raises BackboneError, naming `place`, for another kind of schedule.
    """
    kind = str(schedule.get("_class_name"))
    times = schedule.get("num_train_timesteps", 1000)
    if type(times) is not int or not 1 <= times <= MOST:
        raise BackboneError(f"{place}: num_train_timesteps is a whole number up to {MOST:,}, not {printable(times, 60)}")
    if is_flow(schedule):
        return Flow(net, float(times), **shape)
    if kind == "ScoreSdeVeScheduler":
        return ScoreVE(net, unit_range=True, **shape)
    if kind == "ScoreSdeVpScheduler":
        beta_min, beta_max = float(schedule.get("beta_min", 0.1)), float(schedule.get("beta_max", 20.0))
        return ScoreVP(ScoreOfEps(net, beta_min, beta_max), beta_min, beta_max, **shape)
    if kind == "CMStochasticIterativeScheduler":
        return Consistency(net, schedule.get("sigma_data", 0.5), schedule.get("sigma_min", 0.002), **shape)
    if kind.startswith("EDM") and schedule.get("prediction_type", "epsilon") == "epsilon":
        return EDM(net, schedule.get("sigma_data", 0.5), **shape)
    if "beta_schedule" not in schedule and schedule.get("trained_betas") is None:
        raise BackboneError(
            f"{place}: {kind} has no beta_schedule, and is none of the flow, score, consistency and EDM "
            "schedulers that are read"
        )
    with needs("diffusers", "diffusers"):
        import diffusers
    library: Any = diffusers  # its classes are loaded when they are named
    try:
        scheduler = library.DDPMScheduler.from_config({name: schedule[name] for name in BETAS if name in schedule})
    except MISFIT as error:
        raise BackboneError(f"{place}: the scheduler's config makes no betas: {one_line(error)}") from error
    abars = (1 - scheduler.betas.double()).cumprod(0).tolist()
    return DDPM(net, abars, schedule.get("prediction_type", "epsilon"), **shape)
