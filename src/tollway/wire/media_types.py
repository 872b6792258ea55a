"""The `content-type` of request bodies. Both planes read it here."""

import re

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rb"[ \t]*;[ \t]*(?:(%b)=(?:(%b)|\"((?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*)\"))?" % (_TOKEN, _TOKEN))
"""One parameter, which may be empty, by the grammar of RFC 9110 (sections 5.6.4 and 5.6.6)."""
_JSON = re.compile(rb"[ \t]*application/json(?=[ \t;]|$)", re.IGNORECASE)
_UTF_8 = frozenset({b"utf-8", b"utf8"})


def find_parameter(content_type: bytes, media_type: bytes, name: bytes) -> bytes | None:
    """Return the parameter `name` of a content-type; None if that is not `media_type` (in lower case), is not a list of parameters by
    RFC 9110, or has not exactly one."""
    content_type = content_type.strip(b" \t")
    at = len(media_type)
    if content_type[:at].lower() != media_type:
        return None
    found: bytes | None = None
    while at < len(content_type):
        parameter = _PARAMETER.match(content_type, at)
        if parameter is None:
            return None
        at = parameter.end()
        own_name, token, quoted = parameter.groups()
        if own_name is not None and own_name.lower() == name:
            if found is not None:
                return None
            found = token if token is not None else quoted
    return found


def is_json(content_type: bytes) -> bool:
    """Return whether a content-type says JSON in UTF-8.

    Parameters that say nothing of the encoding are ignored, as RFC 8259 (section 11) defines none for JSON. Anything that is not a list of
    parameters by RFC 9110 is rejected, and so are two charsets.
    """
    match = _JSON.match(content_type)
    if match is None:
        return False
    at = match.end()
    charset = b""
    content_type = content_type.rstrip(b" \t")
    while at < len(content_type):
        parameter = _PARAMETER.match(content_type, at)
        if parameter is None:
            return False
        at = parameter.end()
        name, token, quoted = parameter.groups()
        if name is not None and name.lower() == b"charset":
            if charset:
                return False
            charset = (token if token is not None else quoted).lower()
            if charset not in _UTF_8:
                return False
    return True
