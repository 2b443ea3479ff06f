"""Numbers with the unit that fits: 545.9 kMACs, 5.717 M params, 12.3 ms, 4.15 GB."""

from __future__ import annotations

PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
SMALL = ((1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
"""Prefixes below one; only seconds have them."""
SYMBOLS = ("MACs", "B", "s", "FLOPs")
"""Units that a prefix joins; words (`params`) stand apart."""
WORDS = {"T": "trillion", "G": "billion", "M": "million", "k": "thousand", "": ""}


def quantity(value: float, unit: str, digits: int = 4) -> str:
    """Return a number of a unit, with the prefix that leaves one to three digits before the point.

    Args:
        value: in the unit without a prefix: MACs, bytes ("B"), seconds ("s"), params, …
        unit: a symbol of `SYMBOLS`, which the prefix joins, a word, or "".
        digits: significant digits.

    >>> quantity(545_912, "MACs"), quantity(58, "params"), quantity(5_717_416, "params"), quantity(0.0123, "s")
    ('545.9 kMACs', '58 params', '5.717 M params', '12.3 ms')
    >>> quantity(999_999, "MACs"), quantity(0, "MACs")  # rounding may reach the next prefix
    ('1 MMACs', '0 MACs')
    """
    rounded = float(f"{value:.{digits}g}")
    scale, prefix = scale_of(rounded, small=unit == "s")
    number = f"{rounded / scale:.{digits}g}"
    apart = "" if unit in SYMBOLS or not prefix else " "
    return f"{number} {prefix}{apart}{unit}".rstrip()


def scale_of(value: float, *, small: bool = False) -> tuple[float, str]:
    """Return the scale and the prefix for a value, or for all values of a column or an axis whose largest value this is.

    Args:
        small: whether there are prefixes below one, as for seconds.

    >>> scale_of(18432), scale_of(3), scale_of(2e-5, small=True)
    ((1000.0, 'k'), (1.0, ''), (1e-06, 'µ'))
    """
    for scale, prefix in (*PREFIXES, *(SMALL if small else ())):
        if abs(value) >= scale:
            return scale, prefix
    return (1.0, "") if not small or not value else SMALL[-1]


def scale_word(value: float) -> tuple[float, str]:
    """Return the scale for the largest value of an axis, with its word, such as `million`; "" for 1.

    >>> scale_word(2.5e6)
    (1000000.0, 'million')
    """
    scale, prefix = scale_of(value)
    return scale, WORDS[prefix]
