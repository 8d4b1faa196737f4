"""From a network and the config of diffusers' scheduler to the adapter of the family that the model was trained in.

A config says two things: what the network was trained to predict at which levels and times, which is read, and how diffusers
samples from it, which plays no part, but for the timesteps that a sampler takes: the spacing `own` takes the same. A field
that is neither is refused by its name.
"""

import math
from inspect import signature
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
SHIFT = "snr_shift_scale"
MOST = 1_000_000  # training times of a model of discrete time: each has a level

# The schedulers that are read, by the family that their config describes.
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
SCORES = ("ScoreSdeVeScheduler", "ScoreSdeVpScheduler")
CONSISTENCY = ("CMStochasticIterativeScheduler",)
EDMS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
SHIFTED = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")  # discrete times, their signal-to-noise ratio shifted
DISCRETE = (
    *("DDIMScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler"),
    *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler"),
    *("DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"),
    *("HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler"),
    *("LMSDiscreteScheduler", "PNDMScheduler", "RePaintScheduler", "SASolverScheduler", "TCDScheduler", "UnCLIPScheduler"),
    *("UniPCMultistepScheduler", *SHIFTED),
)
READ = (*FLOWS, *SCORES, *CONSISTENCY, *EDMS, *DISCRETE)
STAND_IN = {"DPMSolverSDEScheduler": "KDPM2DiscreteScheduler"}  # the same levels, without the library torchsde

# Fields that change levels, times or predictions, and the value that says nothing. One that is set in the config of a class
# that does not take it is refused: diffusers passes it over, and the model was trained with it, or not.
TRAINING: dict[str, Any] = {
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    SHIFT: 1.0,
    "timestep_type": "discrete",
    "use_flow_sigmas": False,
    "invert_sigmas": False,
}
# Fields of sampling: which levels a sampler stops at, how it steps between them, and what it clamps x0_hat to.
SAMPLING = {
    *("clip_sample", "clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio", "clip_denoised"),
    *("set_alpha_to_one", "steps_offset", "timestep_spacing", "skip_prk_steps", "solver_order", "algorithm_type"),
    *("solver_type", "lower_order_final", "euler_at_final", "final_sigmas_type", "lambda_min_clipped"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "interpolation_type"),
    *("sigma_min", "sigma_max", "sigma_schedule", "rho", "predict_x0", "disable_corrector", "solver_p"),
    *("predictor_order", "corrector_order", "tau_func", "original_inference_steps", "timestep_scaling", "shift"),
    *("flow_shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
    *("shift_terminal", "time_shift_type", "stochastic_sampling", "upscale_mode", "s_noise", "snr", "sampling_eps"),
    *("correct_steps", "eta", "noise_sampler_seed", "tensor_format"),
}
KNOWN = (
    SAMPLING
    | set(TRAINING)
    | set(BETAS)
    | {"thresholding", "prediction_type", "variance_type", "sigma_data", "beta_min", "beta_max"}
)


def check_schedule(schedule: dict[str, Any], place: Any) -> None:
    """Raises BackboneError, naming `place`, for a scheduler that is not read, and for a field of its config that may change
    levels, times or predictions in a way that is not known."""
    kind = kind_of(schedule)
    if kind not in READ:
        what = "is not read" if "beta_schedule" in schedule else "has no beta_schedule"
        raise BackboneError(
            f"{place}: {printable(kind, 60)} {what}, and is none of diffusers' discrete-time, flow, score, consistency and "
            "EDM schedulers that are read"
        )
    if schedule.get("thresholding"):
        raise BackboneError(
            f"{place}: thresholding, which changes x0_hat by what the rest of the picture predicts, is not read: write "
            "false for it in the scheduler's config"
        )
    if schedule.get("predict_epsilon") is False and schedule.get("prediction_type") != "sample":
        raise BackboneError(f"{place}: predict_epsilon false is an old name: write prediction_type 'sample' in its place")
    for name, value in schedule.items():
        unknown = name not in KNOWN and not name.startswith("_") and name != "predict_epsilon"
        if unknown and value is not None and value is not False:
            raise BackboneError(
                f"{place}: noisebook does not know the field {printable(name, 60)} of a {kind}, which may change levels or "
                "times: leave it out of the scheduler's config if the network was not trained with it"
            )
    taken = signature(_class_of(kind, place).__init__).parameters
    for name, nothing in TRAINING.items():
        if name in schedule and schedule[name] not in (None, nothing) and name not in taken:
            raise BackboneError(
                f"{place}: {name} {printable(schedule[name], 40)} is no field of a {kind}, which diffusers therefore passes "
                "over: name the scheduler that the network was trained with, or leave the field out"
            )
    if schedule.get("use_flow_sigmas") and schedule.get("prediction_type") != "flow_prediction":
        found = printable(schedule.get("prediction_type", "epsilon"), 40)
        raise BackboneError(f"{place}: use_flow_sigmas goes with prediction_type 'flow_prediction', not {found!r}")


def kind_of(schedule: dict[str, Any]) -> str:
    """The class of a scheduler; DDPM's, where the config of an early model gives none."""
    return str(schedule.get("_class_name") or "DDPMScheduler")


def is_flow(schedule: dict[str, Any]) -> bool:
    """Whether a scheduler's config is that of flow matching."""
    return kind_of(schedule) in FLOWS or bool(schedule.get("use_flow_sigmas"))


def is_continuous(schedule: dict[str, Any]) -> bool:
    """Whether a v-prediction in continuous time: diffusers gives its network ln(sigma) / 4, as EDM does."""
    v = schedule.get("prediction_type") == "v_prediction"
    return v and schedule.get("timestep_type") == "continuous"


def reading(schedule: dict[str, Any]) -> dict[str, Any]:
    """What the fingerprint says of a schedule that noisebook once read otherwise: files of that time are refused."""
    if kind_of(schedule) in SHIFTED or is_continuous(schedule) or (is_flow(schedule) and schedule.get("invert_sigmas")):
        return {"levels": 2}
    return {}


def times_of(schedule: dict[str, Any], place: Any) -> int:
    """num_train_timesteps. Raises BackboneError where it is no such number."""
    times = schedule.get("num_train_timesteps", 1000)
    if type(times) is not int or not 1 <= times <= MOST:
        raise BackboneError(f"{place}: num_train_timesteps is a whole number up to {MOST:,}, not {printable(times, 60)}")
    return times


def direction(schedule: dict[str, Any]) -> dict[str, bool]:
    """The option of `Flow` for a model whose time runs from noise to images, as `invert_sigmas` says."""
    return {"reverse": bool(schedule.get("invert_sigmas"))}


def adapter(net: nn.Module, schedule: dict[str, Any], place: Any, **shape: Any) -> Backbone:
    """`net` under the adapter that a scheduler's config asks for; `shape` are the options of `NetworkBackbone`.

    Levels of discrete-time models are diffusers' own betas, multiplied up in float64. Raises BackboneError, naming `place`,
    where the config's numbers make no levels; `check_schedule` has refused other schedulers.
    """
    kind, times = kind_of(schedule), times_of(schedule, place)
    prediction = schedule.get("prediction_type") or "epsilon"
    if is_flow(schedule):
        return Flow(net, float(times), **direction(schedule), **shape)
    if kind == "ScoreSdeVeScheduler":
        return ScoreVE(net, unit_range=True, **shape)
    if kind == "ScoreSdeVpScheduler":
        beta_min, beta_max = (_positive(schedule, name, v, place) for name, v in (("beta_min", 0.1), ("beta_max", 20.0)))
        return ScoreVP(ScoreOfEps(net, beta_min, beta_max), beta_min, beta_max, **shape)
    if kind in CONSISTENCY:
        least = _positive(schedule, "sigma_min", 0.002, place)
        return Consistency(net, _positive(schedule, "sigma_data", 0.5, place), least, **shape)
    if kind in EDMS:
        if prediction not in ("epsilon", "v_prediction"):
            raise BackboneError(f"{place}: a {kind} with prediction_type {printable(prediction, 40)!r} is not read")
        data = _positive(schedule, "sigma_data", 0.5, place)
        return EDM(net, data, negative=prediction == "v_prediction", **shape)
    if is_continuous(schedule):  # EDM's form with data of unit variance
        return EDM(net, 1.0, negative=True, **shape)
    if "beta_schedule" not in schedule and schedule.get("trained_betas") is None:
        raise BackboneError(f"{place}: the config of its {kind} has no beta_schedule and no trained_betas")
    if prediction == "original_sample" and kind == "EulerDiscreteScheduler":
        prediction = "sample"  # the two words of that scheduler for the same
    spacing, offset = _timesteps(schedule, place)
    return DDPM(net, _abars(schedule, place), prediction, spacing=spacing, offset=offset, **shape)


def _timesteps(schedule: dict[str, Any], place: Any) -> tuple[str, int]:
    """(timestep_spacing, steps_offset) of a config, or else of its class; even in the timesteps where the class has neither.
    They are looked at where they are used: a model can be read without them."""
    taken = signature(_class_of(kind_of(schedule), place).__init__).parameters
    if "timestep_spacing" not in taken:
        return "linspace", 0
    spacing = schedule.get("timestep_spacing") or taken["timestep_spacing"].default
    return spacing, schedule.get("steps_offset") or 0


def _abars(schedule: dict[str, Any], place: Any) -> list[float]:
    """abar of each training time, as the scheduler's own class makes it."""
    kind = kind_of(schedule)
    cls = _class_of(kind, place)
    taken = signature(cls.__init__).parameters
    fields = {name: schedule[name] for name in (*BETAS, SHIFT) if name in schedule and name in taken}
    try:
        scheduler = cls.from_config(fields)
    except MISFIT as error:
        raise BackboneError(f"{place}: the scheduler's config makes no betas: {one_line(error)}") from error
    if kind in SHIFTED:  # not the product of its betas
        return scheduler.alphas_cumprod.double().tolist()
    return (1 - scheduler.betas.double()).cumprod(0).tolist()


def _class_of(kind: str, place: Any) -> Any:
    """diffusers' class of that name."""
    with needs("diffusers", "diffusers"):
        import diffusers
    library: Any = diffusers  # its classes are loaded when they are named
    if kind == "ScoreSdeVpScheduler":  # which the library no longer names
        return object
    try:
        return getattr(library, STAND_IN.get(kind, kind))
    except AttributeError as error:
        raise BackboneError(f"{place}: the installed diffusers has no {kind}: update it") from error


def _positive(schedule: dict[str, Any], name: str, default: float, place: Any) -> float:
    """A number above 0 of the config. Raises BackboneError for anything else."""
    value = schedule.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BackboneError(f"{place}: {name} is a number above 0, not {printable(value, 60)}")
    return float(value)
