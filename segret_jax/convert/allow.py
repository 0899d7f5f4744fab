"""`--allow REGEX`: which differences between a file and its model the user accepts."""

import re
from collections.abc import Collection, Mapping, Sequence

from segret_jax.errors import InputError


def compile_patterns(allow: Sequence[str]) -> dict[str, re.Pattern]:
    """Return each regular expression by its text; InputError for what is none."""
    try:
        return {text: re.compile(text) for text in allow}
    except re.error as error:
        raise InputError(f"--allow {error.pattern!r} is no regular expression: {error}") from None


def allowed_reasons(
    names: Sequence[str], patterns: Mapping[str, re.Pattern], known: Collection[str]
) -> dict[str, str]:
    """Return the reason for each difference that a pattern allows.

    A pattern for what is dropped anyway (`known`) does no harm; one for nothing is refused.
    """
    allowed: dict[str, str] = {}
    for text, pattern in patterns.items():
        matched = list(filter(pattern.search, names))
        if not matched and not any(map(pattern.search, known)):
            raise InputError(
                f"--allow {text!r} fits none of {len(names)} differences; leave it out"
            )
        allowed |= dict.fromkeys(matched, f"accepted by --allow {text!r}")
    return allowed
