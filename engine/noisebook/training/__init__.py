"""Making backbones: `noisebook train`. See docs/training.md."""

from typing import TYPE_CHECKING, Any

from noisebook.training.job import TrainingJob

if TYPE_CHECKING:
    from noisebook.training.run import run_training


def __getattr__(name: str) -> Any:  # it brings torch
    if name != "run_training":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from noisebook.training.run import run_training

    return run_training


__all__ = ["TrainingJob", "run_training"]
