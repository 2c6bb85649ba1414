"""The name of a sweep: one that can be a file, an MLflow experiment and a line of a table anywhere."""

import re
import unicodedata

from workflows.documents.parse import forbidden

__all__ = ["LONGEST_NAME", "wrong_name"]

LONGEST_NAME = 120
_MOST_BYTES = 240
"""File systems allow 255 bytes, and names get endings."""

_RESERVED = re.compile(r"(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


def wrong_name(name: str) -> str | None:
    """Return why a text is no name of a sweep, and what to do; None if it is one."""
    if not name.strip():
        return "it is empty; give it a name, like `cifar10-diffpure`"
    if len(name) > LONGEST_NAME or len(name.encode(errors="replace")) > _MOST_BYTES:
        return (
            f"it has {len(name)} characters ({len(name.encode(errors='replace'))} bytes), and a name has at most "
            f"{LONGEST_NAME} ({_MOST_BYTES} bytes); describe the sweep in a comment"
        )
    if "/" in name or "\\" in name:
        return "it has a path separator; the folder of results is the option `--store`, a name has no `/` or `\\`"
    if forbidden(name) is not None or any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in name):
        return "it has a line break or another control character; remove it"
    if name[0] in ".-" or name != name.strip() or name[-1] == ".":
        return "it begins with a dot, dash or space, or ends with a dot or space; begin and end with letters"
    if _RESERVED.fullmatch(name):
        return "Windows reserves this name for a device; choose another"
    return None
