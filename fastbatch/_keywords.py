"""The error for a keyword that a function does not have."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any


def unknown_keyword(name: str, keyword: str, cls: type[Any], hints: Mapping[str, str]) -> TypeError:
    """The TypeError for `name(keyword=...)`.

    It has a hint for a keyword of another library, or names the parameter of `cls` that was probably meant.
    """
    known = [each.name for each in inspect.signature(cls).parameters.values() if each.kind is not each.VAR_KEYWORD]
    meant = difflib.get_close_matches(keyword, known, n=1, cutoff=0.8)  # "scale" is not what "min_scale" means
    if keyword in hints:
        what = hints[keyword]
    elif meant:
        what = f"did you mean {meant[0]}?"
    else:
        what = f"its parameters are {', '.join(known)}"
    return TypeError(f"{name} has no parameter {keyword}: {what}")
