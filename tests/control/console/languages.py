"""Texts of pages in another language than English: what of a page was left in English."""

import html
import re
import runpy
from functools import cache
from pathlib import Path

MESSAGES = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "messages.py"))

_MARKED = re.compile(r'<(\w+)[^>]* lang="en"[^>]*>.*?</\1>', re.DOTALL)
_ATTRIBUTES = re.compile(r'(?:aria-label|placeholder|title|alt)="([^"]*)"')


@cache
def list_translated() -> frozenset[str]:
    """Return the English texts that are no German ones ("Tag" is both)."""
    catalogue = MESSAGES["read_catalogue"](MESSAGES["LANGUAGES"] / "de.po")
    texts = {each.id: each.string for each in catalogue if isinstance(each.id, str) and each.id}
    return frozenset(texts.keys() - set(texts.values()))


def find_english(page: str) -> set[str]:
    """Return the texts of a page in German, and of its attributes, that are English but for what is marked as English."""
    body = _MARKED.sub("", page.partition("<body")[2])
    nodes = [*re.split(r"<[^>]*>", body), *_ATTRIBUTES.findall(body)]
    return {text for each in nodes if (text := html.unescape(each).strip()) in list_translated()}
