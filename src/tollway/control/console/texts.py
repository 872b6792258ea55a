"""Languages of the console: which one a page is written in, and its texts, from the catalogues in `languages/` (gettext).

English is what templates and modules say themselves. The other catalogues are read once, when the first page in that language is asked for.
"""

import functools
import gettext
import io
from importlib.resources import files

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

LANGUAGES = ("en", "de")
"""Languages of the console; the first one is for whoever asks for none of them."""


@functools.cache
def get_texts(language: str) -> gettext.NullTranslations:
    """Return the texts of one of LANGUAGES."""
    if language == LANGUAGES[0]:
        return gettext.NullTranslations()
    source = files("tollway.control.console").joinpath("languages", f"{language}.po").read_bytes()
    catalogue = read_po(io.BytesIO(source), locale=language)
    compiled = io.BytesIO()
    write_mo(compiled, catalogue)
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)


def choose_language(wanted: str | None, accepted: str) -> str:
    """Return the language of a page: the one that the viewer chose, or the first known one of `Accept-Language` (RFC 9110, section 12.5.4),
    whose order is taken as the preference."""
    if wanted in LANGUAGES:
        return wanted
    for each in accepted[:512].split(","):
        primary = each.partition(";")[0].strip().lower().partition("-")[0]
        if primary in LANGUAGES:
            return primary
    return LANGUAGES[0]


def mark(text: str) -> str:
    """Return `text`, which is thereby collected for the catalogues: of texts in tables, translated where they are shown."""
    return text
