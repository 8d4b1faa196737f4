"""One page of HTML about tokenised data sets: `noisebook report`. See docs/report.md."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noisebook.report.build import build_report


def __getattr__(name: str) -> Any:  # it brings torch
    if name != "build_report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from noisebook.report.build import build_report

    return build_report


__all__ = ["build_report"]
