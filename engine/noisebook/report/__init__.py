"""One page of HTML about .nbk files or tokenised data sets: `noisebook report`. See docs/report.md."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noisebook.report.build import build_report
    from noisebook.report.build_pictures import build_picture_report


def __getattr__(name: str) -> Any:  # they bring torch, and only that about data sets pyarrow
    if name == "build_report":
        from noisebook.report.build import build_report

        return build_report
    if name == "build_picture_report":
        from noisebook.report.build_pictures import build_picture_report

        return build_picture_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["build_picture_report", "build_report"]
