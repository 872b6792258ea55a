"""Builds the site of the documentation in build/site: `python -m scripts.docs_site` (`make site`).

The pages are the Markdown files of docs/ and of the root. docs/README.md is the start page and the navigation: the first link of each
item of its lists is a page, under the heading of its part. The pages are copied to build/site-source in the shape of the repository, with
the files to which they link, so that every relative link leads to the same thing as in the repository. A link to a directory leads to a
list of its files. Sphinx ends with an error at a link or an anchor that leads nowhere, and at a page that the navigation has left out.
"""

import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from scripts.rest_pages import read_description, render_pages

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "build" / "site-source"
SITE = ROOT / "build" / "site"
START = "docs/README.md"
DECISIONS = "docs/decisions/README.md"
REST = "docs/rest"
REST_PART = "Reference"
"""The part of the navigation that the pages of the REST API belong to; they exist in the site alone."""

CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(\s*<?([^)\s>#]+)(?:#[^)\s>]*)?>?\s*\)")
ITEM = re.compile(r"^- \[[^\]]+\]\(([^)#]+)\)", re.MULTILINE)
REDIRECT = '<!doctype html><meta charset="utf-8"><title>Tollway</title><meta http-equiv="refresh" content="0; url=docs/README.html">\n'


def list_pages() -> list[str]:
    """Return the paths of all pages from the root of the repository."""
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def read_navigation(start: str) -> dict[str, list[str]]:
    """Return the pages of each part, in order, as paths from the root. `start`: the text of the start page."""
    parts = {}
    for section in re.split(r"^## ", start, flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        parts[title.strip()] = [posixpath.normpath(posixpath.join("docs", target)) for target in ITEM.findall(text)]
    return parts


def list_targets(page: str, text: str) -> Iterator[str]:
    """Yield what a page links to inside of the repository, as paths from the root."""
    for target in LINK.findall(CODE.sub("", text)):
        if not re.match(r"[a-z][a-z+.-]*:", target):
            yield posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def lay_out() -> None:
    """Write the sources of the site: pages, the files that they link to, and the pages of the REST API."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    pages = list_pages()
    for page in pages:
        text = (ROOT / page).read_text("utf-8")
        for target in list_targets(page, text):
            if (ROOT / target).is_dir():
                text = _link_to_list(page, text, target)
            elif (ROOT / target).is_file() and target not in pages:
                _copy(target)
        if page == START:
            text += "".join(_render_navigation(text))
        elif page == DECISIONS:
            text += "\n```{toctree}\n:hidden:\n:glob:\n\n[0-9]*\n```\n"
        _write(page, text)
    for name, text in render_pages(read_description()).items():
        _write(f"{REST}/{name}", text)


def _render_navigation(start: str) -> Iterator[str]:
    for title, pages in read_navigation(start).items():
        entries = [f"/{page.removesuffix('.md')}" for page in pages]
        if title == REST_PART:
            entries.insert(0, f"/{REST}/index")
        listed = "\n".join(entries)
        yield f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```\n"


def _link_to_list(page: str, text: str, directory: str) -> str:
    """Return a page with its links to a directory changed into links to the list of its files, which is written here."""
    listing = f"{directory}/README.md"
    if not (ROOT / listing).exists() and not (SOURCE / listing).exists():
        tracked = subprocess.run(["git", "ls-files", directory], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        listed = [each for each in tracked if (ROOT / each).is_file()]  # links to directories are left out
        for each in listed:
            _copy(each)
        rows = [f"- [{posixpath.relpath(each, directory)}](<{posixpath.relpath(each, directory)}>)\n" for each in listed]
        _write(listing, f"---\norphan: true\n---\n# Files of {directory}\n\n{''.join(rows)}")
    target = posixpath.relpath(directory, posixpath.dirname(page) or ".")
    return re.sub(rf"\]\({re.escape(target)}/?\)", f"]({target}/README.md)", text)


def _copy(path: str) -> None:
    place = SOURCE / path
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / path, place)


def _write(path: str, text: str) -> None:
    place = SOURCE / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, "utf-8")


def main() -> int:
    """Build the site; returns the exit code of Sphinx."""
    lay_out()
    shutil.rmtree(SITE, ignore_errors=True)
    sphinx = (str(ROOT / ".venv-site" / "bin" / "python"), "-m", "sphinx", "--builder", "html", "--quiet", "--fail-on-warning")
    options = ("--keep-going", "--fresh-env", "--conf-dir", str(ROOT / "docs"), "--doctree-dir", str(ROOT / "build" / "site-doctrees"))
    code = subprocess.run([*sphinx, *options, str(SOURCE), str(SITE)]).returncode
    if code == 0:
        (SITE / "index.html").write_text(REDIRECT, "utf-8")
        print(f"==> build/site/index.html, {sum(1 for _ in SITE.rglob('*.html'))} pages")
    return code


if __name__ == "__main__":
    sys.exit(main())
