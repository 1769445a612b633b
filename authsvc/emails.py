"""What an e-mail address is the same as: pure.

Compatibility forms (full-width letters, ligatures) are resolved by NFKC and case is folded. What is not ASCII then is refused,
so that no two addresses look alike and are not; a domain of another script is written in its `xn--` form.
"""

from __future__ import annotations

import re
import unicodedata

from naru.errors import invalid_argument

EMAIL_CHARACTERS_MAX = 254
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_EMAIL = re.compile(rf"[a-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{_LABEL}(?:\.{_LABEL})*")


def normalise(email: str, field: str = "email") -> str:
    """The one way to write an address. Raises NaruError INVALID_ARGUMENT naming `field`."""
    if len(email) <= EMAIL_CHARACTERS_MAX:
        normal = unicodedata.normalize("NFKC", email).casefold()
        if len(normal) <= EMAIL_CHARACTERS_MAX and _EMAIL.fullmatch(normal):
            return normal
    raise invalid_argument(
        field,
        f"{field} must be an e-mail address of at most {EMAIL_CHARACTERS_MAX} ASCII letters, digits and signs, without spaces;"
        " a domain of another script in its xn-- form.",
    )
