"""What the name of a factory of backbones looks like: MODULE:FACTORY. Whoever reads a data set asks this, without torch."""

import re

WORD = r"[^\W\d]\w*"
FORM = re.compile(rf"({WORD}(?:\.{WORD})*):({WORD}(?:\.{WORD})*)")
MOST = 250  # characters of a text: it is recorded


def is_factory(name: str) -> bool:
    """Whether a text has the form MODULE:FACTORY."""
    return len(name) <= MOST and FORM.fullmatch(name) is not None
