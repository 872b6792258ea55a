"""Rendering of the pages of the console: templates by language, the look that a viewer chose, notices after a form, and pages of faults.

The look (language and theme) and the notice are cookies with a few known values: whoever sets them from elsewhere changes nothing else.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import Response

from tollway.control.api.authentication import pages
from tollway.control.api.authentication.pages import LOOK_COOKIE, THEMES
from tollway.control.console import assets, charts
from tollway.control.languages import formats, times
from tollway.control.languages.texts import LANGUAGES, get_texts, make_templates, mark
from tollway.domain.billing_classes import BillingClass
from tollway.domain.faults import Fault
from tollway.domain.reconciliation import HourState
from tollway.domain.usage import UnbilledReason, UsageSource
from tollway.wire.retry_after import retry_headers

HEADERS: Mapping[str, str] = {
    **pages.HEADERS,
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of every page of the console: it runs our own files alone."""

NOTICE_COOKIE = "tollway_notice"
LOOK_SECONDS = 365 * 86_400
NOTICE_SECONDS = 60
"""Time for which a notice waits for the page that shows it."""

NOTICES: Mapping[str, str] = {
    "saved": mark("Saved."),
    "created": mark("Created."),
    "deleted": mark("Deleted."),
    "archived": mark("Archived."),
    "discarded": mark("The draft was discarded."),
    "prices_published": mark("The prices are published, and every gateway has them."),
    "invoice_issued": mark("The invoice is issued."),
    "invoice_voided": mark("The draft was voided."),
    "invoices_drafted": mark("Drafts were made. Each is issued by itself."),
    "node_revoked": mark("The gateway was revoked."),
    "period_closed": mark("The period is closed."),
    "period_closing": mark("The period is frozen; its digests are being computed. Close it again to go on."),
    "key_revoked": mark("The key was revoked."),
    "secret_retired": mark("The secret before the latest rotation was retired."),
    "invited": mark("The invitation is on its way."),
    "invited_without_mail": mark("The invitation stands, but its mail could not be sent."),
    "payment_recorded": mark("The payment is recorded."),
    "replayed": mark("The events are delivered once more."),
    "pending": mark("Done, but not every gateway has confirmed it yet. Those that have not are on the page of the fleet."),
}
"""Texts that a page says after a form was carried out, by a key that the browser brings."""


VALUES: Mapping[str, str] = {
    "open": mark("open"),
    "closing": mark("closing"),
    "closed": mark("closed"),
    "draft": mark("draft"),
    "published": mark("published"),
    "discarded": mark("discarded"),
    "issued": mark("issued"),
    "void": mark("void"),
    "invoice": mark("invoice"),
    "credit_note": mark("credit note"),
    "paid": mark("paid"),
    "returned": mark("returned"),
    "cancelled": mark("cancelled"),
    "waiting": mark("waiting"),
    "payment": mark("payment"),
    "refund": mark("refund"),
    "return": mark("return"),
    "write_off": mark("write-off"),
    "manual": mark("by hand"),
    "bank_statement": mark("bank statement"),
    "hard": mark("hard"),
    "soft": mark("soft"),
    "alert": mark("alert"),
    BillingClass.INPUT: mark("input"),
    BillingClass.CACHED_INPUT: mark("cached input"),
    BillingClass.OUTPUT: mark("output"),
    BillingClass.REASONING: mark("reasoning"),
    BillingClass.CACHE_WRITE: mark("cache write"),
    BillingClass.AUDIO_INPUT: mark("input as sound"),
    BillingClass.IMAGE_INPUT: mark("input as pictures"),
    BillingClass.AUDIO_OUTPUT: mark("output as sound"),
    BillingClass.IMAGE_OUTPUT: mark("output as pictures"),
    BillingClass.SECONDS: mark("seconds of sound"),
    BillingClass.CHARACTERS: mark("characters"),
    BillingClass.IMAGES: mark("pictures"),
    BillingClass.PIXELS: mark("pixels"),
    BillingClass.REQUEST: mark("request"),
    HourState.OK: mark("agrees"),
    HourState.NOT_OBSERVED: mark("not observed"),
    HourState.PARTIAL: mark("observed in part"),
    HourState.DRIFT: mark("differs"),
    UsageSource.ENGINE_FINAL: mark("the engine, at the end"),
    UsageSource.ENGINE_CONTINUOUS: mark("the engine, while it answered"),
    UsageSource.COUNTED: mark("the gateway"),
    UsageSource.ESTIMATED: mark("the gateway, by an estimate"),
    UsageSource.RECOVERED: mark("the last note of a gateway that died"),
    UsageSource.NONE: mark("nobody"),
    UnbilledReason.TEST_KEY: mark("sent with a test key"),
    UnbilledReason.ENDPOINT: mark("its endpoint generates nothing"),
    UnbilledReason.OUTCOME: mark("it ended in a way that is not billed"),
}
"""Values of the REST API by what pages call them; every other one is shown as it is."""


DURATION_UNITS: Mapping[str, str] = {"days": mark("days"), "hours": mark("hours"), "seconds": mark("seconds")}
"""Names of the units of `times.UNITS`."""


@dataclass(frozen=True, slots=True)
class Look:
    """The look that a viewer chose: a language of LANGUAGES, one of THEMES; and the key of NOTICES that this page shows, or none."""

    language: str
    theme: str = THEMES[0]
    notice: str = ""


def read_look(request: Request) -> Look:
    """Return the look of a page, as the browser asks for it."""
    language, theme = pages.choose_look(request)
    notice = pages.find_cookie(request, NOTICE_COOKIE) or ""
    return Look(language, theme, notice if notice in NOTICES else "")


def keep_look(answer: Response, origin: str, language: str, theme: str) -> Response:
    """Let the browser keep a look."""
    return _set_cookie(answer, origin, LOOK_COOKIE, f"{language}.{theme}", LOOK_SECONDS)


def lead(origin: str, path: str, notice: str = "") -> Response:
    """Return the answer that leads to a path of this site, where a notice is shown."""
    answer = Response(status_code=303, headers={**HEADERS, "location": path})
    return _set_cookie(answer, origin, NOTICE_COOKIE, notice, NOTICE_SECONDS) if notice else answer


def _set_cookie(answer: Response, origin: str, name: str, value: str, seconds: int) -> Response:
    secure = "; Secure" if origin.startswith("https:") else ""
    answer.headers.append("set-cookie", f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}")
    return answer


# ---- Templates ----------------------------------------------------------------------------------------------------------


@functools.cache
def _get_environment(language: str) -> jinja2.Environment:
    """Return the templates as they are written in one language."""
    environment = make_templates("tollway.control.console", "templates", language)
    environment.filters |= {
        "number": functools.partial(formats.format_number, language),
        "percent": functools.partial(formats.format_basis_points, language),
        "time": functools.partial(times.show_time, language),
        "day": functools.partial(times.show_day, language),
        "milliseconds": functools.partial(times.format_milliseconds, language),
        "money": functools.partial(formats.show_money, language),
        "named": functools.partial(_name_value, language),
    }
    environment.globals |= {
        "asset": assets.get_path,
        "draw_bars": functools.partial(charts.draw_bars, language),
        "DURATION_UNITS": DURATION_UNITS,
        "split_duration": times.split_duration,
        "show_duration": functools.partial(times.show_duration, language),
        "LANGUAGES": LANGUAGES,
        "NOTICES": NOTICES,
        "DASH": formats.DASH,
    }
    return environment


def _name_value(language: str, value: str) -> str:
    """Return what a page calls a value of the REST API."""
    return get_texts(language).gettext(VALUES[value]) if value in VALUES else value


def fill_in(template: str, look: Look, **values: Any) -> str:
    """Return a template with values, each of which is escaped."""
    return _get_environment(look.language).get_template(template).render(look=look, **values)


def render(template: str, look: Look, *, status: int = 200, **values: Any) -> Response:
    """Return a page. Every value is escaped."""
    answer = Response(fill_in(template, look, **values), status, HEADERS, "text/html")
    if look.notice:
        answer.headers.append("set-cookie", f"{NOTICE_COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax")
    return answer


def protect(file: Response) -> Response:
    """Return a file that the API answered with the headers of the console."""
    file.headers.update(HEADERS)
    return file


def render_fault(look: Look, fault: Fault) -> Response:
    """Return the page that a fault becomes."""
    page = render("fault.html", look, status=fault.kind.status, fault=fault)
    page.headers.update(retry_headers(fault))
    return page
