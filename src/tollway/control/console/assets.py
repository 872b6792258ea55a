"""Files that pages load: style sheet and scripts. Their names contain a digest of their content, so browsers keep them indefinitely."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import Depends
from starlette.responses import Response

from tollway.control.api.authentication import pages
from tollway.control.api.routes import public
from tollway.domain.faults import RESOURCE_UNKNOWN, Fault

router = pages.router()

PATH = "/console/assets/"

_TYPES = {"css": "text/css", "js": "text/javascript"}
_INDEFINITELY = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent. `path`: under which it is asked for."""

    path: str
    content: bytes
    media_type: str


def _read() -> dict[str, Asset]:
    found = {}
    for file in files("tollway.control.console").joinpath("static").iterdir():
        stem, _, suffix = file.name.rpartition(".")
        if suffix in _TYPES:
            content = file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:16]
            found[file.name] = Asset(f"{PATH}{stem}.{digest}.{suffix}", content, _TYPES[suffix])
    return found


_BY_NAME = _read()
_BY_PATH = {asset.path: asset for asset in _BY_NAME.values()}


def get_path(name: str) -> str:
    """Return the path of a file by its name in `static/`. Raises KeyError."""
    return _BY_NAME[name].path


@router.get(PATH + "{name}", dependencies=[Depends(public)], include_in_schema=False)
async def show_asset(name: str) -> Response:
    """A file that pages load."""
    asset = _BY_PATH.get(PATH + name)
    if asset is None:
        raise Fault(RESOURCE_UNKNOWN)
    return Response(asset.content, headers={"cache-control": _INDEFINITELY}, media_type=asset.media_type)
