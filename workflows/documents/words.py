"""The value of an unquoted word in YAML, where YAML 1.1 and 1.2 agree on one."""

import math
import re
from typing import Any

__all__ = ["HALF_BOOLEAN", "scalar"]

_INTEGER = re.compile(r"[-+]?(0|[1-9]\d*|[1-9]\d{0,2}(_\d{3})+)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?", re.ASCII)
_NULL = {"", "~", "null", "Null", "NULL"}
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
HALF_BOOLEAN = re.compile(r"(?i:yes|no|on|off)")
"""Words that are true or false in YAML 1.1 and text in YAML 1.2."""
_LEADING_ZERO = re.compile(r"[-+]?0[\d_]+", re.ASCII)
_OTHER_BASE = re.compile(r"[-+]?0[xob][0-9a-fA-F_]+", re.ASCII)
_BASE_60 = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_UNDERSCORES = re.compile(r"[-+]?[\d.]*\d_[\d_.]*([eE][-+]?\d+)?", re.ASCII)
_MOST_DIGITS = 18


def scalar(text: str) -> Any:
    """Return the value of unquoted text.

    Raises:
        ValueError: YAML readers differ about it, or it is no number that can be meant.
    """
    if text in _NULL:
        return None
    if text in _BOOLEAN:
        return _BOOLEAN[text]
    if HALF_BOOLEAN.fullmatch(text):
        truth = "true" if text.lower() in ("yes", "on") else "false"
        name = "" if truth == "true" else ", `none` where a name is meant"
        raise ValueError(
            f"the unquoted word {text!r} is {truth} in YAML 1.1 and text in YAML 1.2. Write `{truth}`{name}, or "
            f'"{text}" in quotes for the text'
        )
    short = text if len(text) <= 40 else f"{text[:20]}... ({len(text):,} characters)"
    if _INTEGER.fullmatch(text):
        digits = text.replace("_", "")
        if len(digits.lstrip("+-")) > _MOST_DIGITS:
            raise ValueError(
                f"the number {short} has more than {_MOST_DIGITS} digits, and none here can be so large; text, such "
                "as a hash, is put in quotes"
            )
        return int(digits)
    if _LEADING_ZERO.fullmatch(text):
        plain = text.replace("_", "").lstrip("+-").lstrip("0") or "0"
        octal = f" (or {int(plain, 8)}, if octal was meant)" if len(plain) < 9 and not set(plain) & set("89") else ""
        plain = plain if len(plain) <= 20 else f"{plain[:20]}..."
        raise ValueError(
            f"the number {short} begins with 0, which is octal in YAML 1.1 and decimal in 1.2. Write "
            f"{plain}{octal}, or put it in quotes if it is text, such as a hash"
        )
    if _OTHER_BASE.fullmatch(text):
        try:
            decimal = str(int(text.replace("_", ""), 0)) if len(text) < 20 else "it"
        except ValueError:
            decimal = "it"
        raise ValueError(f"write {decimal} in decimal digits, or in quotes if it is text; {short} is not read here")
    if _FLOAT.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            raise ValueError(f"the number {short} is beyond all that can be stored; text is put in quotes")
        return number
    if _BASE_60.fullmatch(text):
        raise ValueError(
            f"{short} is a number to base 60 in YAML 1.1 and text in YAML 1.2. Write a decimal number, or put it in "
            "quotes if it is text"
        )
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{short} is no number that a field could have: give a finite one, or leave the field out")
    if _UNDERSCORES.fullmatch(text):
        raise ValueError(f"{short} is a number in YAML 1.1 and text in YAML 1.2. Write it without `_`")
    return text
