"""Collects the texts of pages into the catalogues of their languages: `python scripts/messages.py`.

A text that is new gets an empty translation, which a test finds; one that is gone is removed, and a translation that exists is kept.
"""

import io
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po, write_po

from tollway.control.api.authentication.pages import REFUSALS
from tollway.domain import passwords

CONTROL = Path(__file__).parent.parent / "src" / "tollway" / "control"

FOLDERS = ("api/authentication", "api/page_templates", "authentication", "console", "identity")
"""Folders of control in which there are texts of pages."""

LANGUAGES = CONTROL / "languages"

TEXTS_OF_VALUES = (*(kind.message for kind in REFUSALS), passwords.LENGTH_WRONG, passwords.TOO_UNIFORM, passwords.LIKE_ADDRESS)
"""Texts that are no literals in these folders."""

METHODS = [("**.py", "python"), ("**.html", "jinja2.ext:babel_extract")]

OPTIONS = {"**.html": {"trimmed": "true", "newstyle_gettext": "true", "trim_blocks": "true", "lstrip_blocks": "true"}}

KEYWORDS = {"_": None, "gettext": None, "ngettext": (1, 2), "mark": None}
"""Functions whose arguments are texts, as babel names them."""


def collect() -> Catalog:
    """Return the texts of pages, without translations."""
    template = Catalog(charset="utf-8")
    for folder in FOLDERS:
        found = extract_from_dir(CONTROL / folder, METHODS, OPTIONS, KEYWORDS)
        for _file, _line, message, _comments, _context in sorted(found, key=lambda each: (each[0], each[1])):
            template.add(message)
    for text in TEXTS_OF_VALUES:
        template.add(text)
    return template


def read_catalogue(path: Path) -> Catalog:
    """Return the catalogue of a language."""
    return read_po(io.BytesIO(path.read_bytes()), locale=path.stem)


def main() -> None:
    """Bring every catalogue in step with the pages."""
    template = collect()
    for path in sorted(LANGUAGES.glob("*.po")):
        catalogue = read_catalogue(path)
        catalogue.update(template, no_fuzzy_matching=True)
        with path.open("wb") as file:
            write_po(file, catalogue, no_location=True, omit_header=True, sort_output=True, ignore_obsolete=True, width=140)


if __name__ == "__main__":
    main()
