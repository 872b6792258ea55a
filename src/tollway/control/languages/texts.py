"""Languages of pages: which one a page is written in, and its texts, from the catalogues beside this file (gettext).

English is what templates and modules say themselves. The other catalogues are read once, when the first page in that language is asked for.
"""

import functools
import gettext
import io
from importlib.resources import files

import jinja2
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from markupsafe import Markup, escape

LANGUAGES = ("en", "de")
"""Languages of pages; the first one is for whoever asks for none of them."""


@functools.cache
def get_texts(language: str) -> gettext.NullTranslations:
    """Return the texts of one of LANGUAGES."""
    if language == LANGUAGES[0]:
        return gettext.NullTranslations()
    source = files("tollway.control.languages").joinpath(f"{language}.po").read_bytes()
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


def show_refusal(language: str, text: str) -> Markup:
    """Return the text of a refusal for a page: in its language if the catalogue has it, else in English and marked so."""
    found = get_texts(language).gettext(text) if text else ""
    if found != text or language == LANGUAGES[0]:
        return escape(found)
    return Markup('<span lang="{}">{}</span>').format(LANGUAGES[0], text)


def make_templates(package: str, folder: str, language: str) -> jinja2.Environment:
    """Return the templates in a folder of a package as they are written in one language. They escape every value."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    texts = get_texts(language)
    environment.install_gettext_callables(texts.gettext, texts.ngettext, newstyle=True)  # type: ignore[attr-defined]
    environment.filters["refusal"] = functools.partial(show_refusal, language)
    return environment
