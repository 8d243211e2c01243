"""Where Fox keeps what it can make again, such as compiled code."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/fox, or ~/.cache/fox. A relative path there counts for nothing, as the XDG specification has it."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (given if given.is_absolute() else Path.home() / ".cache") / "fox"
    except RuntimeError:  # nobody's home: what is made does not stay
        return Path(tempfile.gettempdir()) / f"fox-{os.getuid()}"
