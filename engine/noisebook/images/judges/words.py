"""What a judge found, in words."""

from collections.abc import Mapping
from typing import Any

from noisebook.errors import printable
from noisebook.images.judges.catalogue import METRICS

BY_KEY = {metric.key: metric for metric in METRICS.values()}


def value_of(key: str, entry: Mapping[str, Any]) -> str:
    """The value of an entry of `Judge.summary`, with its unit; "none" where there is none."""
    return "none" if entry["value"] is None else BY_KEY[key].shown(entry["value"])


def line_of(key: str, entry: Mapping[str, Any]) -> str:
    """An entry of `Judge.summary` in a line: value, direction, over what, and the files that computed it."""
    metric, over = BY_KEY[key], f"{entry['pictures']} of {entry['of']} pictures"
    if metric.of_set:
        kind = f"patches of {entry['patch']} pixels" if entry["patch"] else "whole pictures"
        over = f"{over}, {entry['samples']:,} {kind}, {entry['features']:,} features"
    else:
        over = f"mean of {over}"
    networks = [f"{printable(n['file'])} sha256:{n['sha256']}" for n in entry["networks"]]
    parts = [f"{metric.title} {value_of(key, entry)} ({metric.direction})", over, *filter(None, [entry["by"]]), *networks]
    return ", ".join(parts) + (f": {entry['remark']}" if entry["remark"] else "")


def remarks_of(remarks: Mapping[str, str]) -> list[str]:
    """Why a picture has no value of some metrics, a phrase each."""
    return [f"no {BY_KEY[key].title}: {text}" for key, text in remarks.items()]
