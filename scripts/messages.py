"""Collects the texts of the console into the catalogues of its languages: `python scripts/messages.py`.

A text that is new gets an empty translation, which a test finds; one that is gone is removed, and a translation that exists is kept.
"""

import io
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po, write_po

CONSOLE = Path(__file__).parent.parent / "src" / "tollway" / "control" / "console"

LANGUAGES = CONSOLE / "languages"

METHODS = [("**.py", "python"), ("**.html", "jinja2.ext:babel_extract")]

OPTIONS = {"**.html": {"trimmed": "true", "newstyle_gettext": "true", "trim_blocks": "true", "lstrip_blocks": "true"}}

KEYWORDS = {"_": None, "gettext": None, "ngettext": (1, 2), "mark": None}
"""Functions whose arguments are texts, as babel names them."""


def collect() -> Catalog:
    """Return the texts of the console, without translations."""
    template = Catalog(charset="utf-8")
    found = extract_from_dir(CONSOLE, METHODS, OPTIONS, KEYWORDS)
    for _file, _line, message, _comments, _context in sorted(found, key=lambda each: (each[0], each[1])):
        template.add(message)
    return template


def read_catalogue(path: Path) -> Catalog:
    """Return the catalogue of a language."""
    return read_po(io.BytesIO(path.read_bytes()), locale=path.stem)


def main() -> None:
    """Bring every catalogue in step with the console."""
    template = collect()
    for path in sorted(LANGUAGES.glob("*.po")):
        catalogue = read_catalogue(path)
        catalogue.update(template, no_fuzzy_matching=True)
        with path.open("wb") as file:
            write_po(file, catalogue, no_location=True, omit_header=True, sort_output=True, ignore_obsolete=True, width=140)


if __name__ == "__main__":
    main()
