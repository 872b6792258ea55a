"""Languages of pages: every text of the console, and of the pages of the sign-in and the account, has a translation and is shown in it."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from babel import dates, numbers
from markupsafe import Markup

import tollway.control
from tests.control.browsing import PASSWORD, Browser, join, read_secret, show_code
from tests.control.console.languages import MESSAGES, find_english
from tests.control.console.pages import PLATFORM_PAGES, TENANT_PAGES, fill_in, fill_in_platform
from tests.control.harness import Running, TenantSetup, answered, find_token, make_tenant
from tollway.control.languages.formats import format_number
from tollway.control.languages.texts import choose_language, show_refusal
from tollway.control.languages.times import format_milliseconds, show_day, show_time

CONTROL = Path(tollway.control.__file__).parent

TEMPLATES = sorted([*(CONTROL / "api" / "page_templates").glob("*.html"), *(CONTROL / "console" / "templates").rglob("*.html")])

NO_TEXTS = re.compile(r"\b(?:Tollway|UTC|SCIM|JSON|URL|https|http|engine|Bearer|IBAN|BIC|authorization|1M|s)\b|&[a-z]+;")
"""Words that pages have in each language alike: names, and examples of addresses and headers."""


def test_every_text_has_its_translation() -> None:
    wanted = {each.id for each in MESSAGES["collect"]() if each.id}
    for path in MESSAGES["LANGUAGES"].glob("*.po"):
        texts = {each.id: each.string for each in MESSAGES["read_catalogue"](path) if each.id}
        assert set(texts) == wanted, "run `make messages`"
        assert [each for each, text in texts.items() if not text or not all(text)] == []


def find_literals(template: str) -> list[str]:
    """Return the texts of a template, and of its attributes, that no catalogue is asked for. What stands as code is none."""
    for code in (r"{%-? *trans.*?endtrans *-?%}", r"{#.*?#}|{%.*?%}|{{.*?}}", r"<(code|pre)[ >].*?</\1>"):
        template = re.sub(code, "", template, flags=re.DOTALL)
    texts = [*re.split(r"<[^>]*>", template), *re.findall(r'(?:aria-label|placeholder|title|alt)="([^"]*)"', template)]
    return [each.strip() for each in texts if re.search(r"[^\W\d_]", NO_TEXTS.sub("", each))]


def test_templates_say_nothing_that_cannot_be_translated() -> None:
    found = {f"{path.parent.name}/{path.name}": find_literals(path.read_text()) for path in TEMPLATES}
    assert len(found) > 50 and {name: texts for name, texts in found.items() if texts} == {}
    assert find_literals('<p title="{{ x }}">Saved</p>{% if x %}{{ _("a") }}{% endif %}') == ["Saved"]


@pytest.mark.parametrize("language", ["en", "de"])
def test_numbers_and_days_are_written_as_the_language_has_them(language: str) -> None:
    """Texts that pages write themselves, because they have hundreds of them, are those of Babel."""
    for value in (0, 7, -7, 999, 1_000, -1_234_567, 10**15):
        assert format_number(language, value) == numbers.format_decimal(value, locale=language)
    at = datetime(2026, 3, 9, 23, 59, 58, tzinfo=UTC)
    day, seconds = dates.format_date(at, "medium", locale=language), int(at.timestamp())
    assert show_day(language, seconds) == f'<time datetime="2026-03-09">{day}</time>'
    assert show_time(language, seconds) == f'<time datetime="2026-03-09T23:59:58Z">{day} 23:59 UTC</time>'
    assert show_time(language, seconds, with_seconds=True) == f'<time datetime="2026-03-09T23:59:58Z">{day} 23:59:58 UTC</time>'
    assert format_milliseconds(language, 1_234.4) == f"{format_number(language, 1_234)} ms"


def test_language_is_chosen_by_the_person_and_else_by_the_browser() -> None:
    assert [choose_language(*each) for each in (("de", "en"), ("", "fr, de-AT;q=0.9"), ("xx", "fr"), (None, ""))] == [
        "de",
        "de",
        "en",
        "en",
    ]
    assert show_refusal("de", "no text of ours <b>") == Markup('<span lang="en">no text of ours &lt;b&gt;</span>')
    assert show_refusal("de", "Sign in first.") == "Melden Sie sich zuerst an." and show_refusal("en", "") == ""


def test_person_is_invited_signs_in_and_approves_a_device_in_german(control: Running) -> None:
    admin = control.client(make_tenant(control, "deutsch").admin_key)
    email = "lovelace@example.com"
    browser = Browser(control)
    browser.client.headers["accept-language"] = "de-DE,de;q=0.9,en;q=0.5"
    seen = 0

    def check(*expected: str) -> None:
        nonlocal seen
        text = browser.page.text
        assert '<html lang="de"' in text and find_english(text) == set() and all(each in text for each in expected), text
        assert 'lang="en"' not in text
        seen += 1

    browser.open("/join?token=none")
    check("Bitten Sie um eine neue.")
    answered(admin.post("/v1/organization/invites", json={"email": email, "role": "reader"}))
    browser.open(f"/join?token={find_token(control, email)}")
    check("Der Organisation beitreten")
    for password in ("short", "a" * 12, "lovelace-password"):
        browser.send("/join", 400, name="Ada", password=password)
        check("Das Passwort")
    browser.send("/join", name="Ada", password=PASSWORD)
    check("Sie haben ein Passwort.", "diese Sitzung", "viewer in der Organisation", "Browser: ")
    browser.open("/account/authenticator")
    check("Fügen Sie dieses Geheimnis der App hinzu")
    secret = read_secret(browser.page.text)
    browser.send("/account/authenticator", 400, code="000000" if show_code(control, secret) != "000000" else "111111")
    check("Prüfen Sie die Uhr des Geräts.")
    browser.send("/account/authenticator", code=show_code(control, secret))
    check("Wiederherstellungscodes")
    browser.open("/account")
    check("10 Wiederherstellungscodes sind übrig.")
    browser.open("/device?user_code=none")
    check("<code>tollway login</code>", email)
    browser.send("/device", 400)
    check("Es gibt keine Anmeldung mit diesem Code.")
    begun = answered(control.client(None).post("/v1/oauth/device_authorization", data={"client_id": "tollway-cli"}))
    browser.open(begun["verification_uri_complete"])
    browser.send("/device")
    check("höchstens 30 Tage lang")
    browser.send("/device/decision", decision="deny")
    check("Die Anmeldung wurde abgelehnt.")
    browser.open("/account")
    browser.send("/sign-out")
    check("Sie sind abgemeldet.")
    browser.sign_in(email, "not the password", status=401)
    check("Die Adresse, das Passwort oder der Code stimmt nicht.")
    browser.sign_in(email)
    check("oder ein Wiederherstellungscode")
    browser.send("/sign-in/code", 401, code="000000" if show_code(control, secret, 1) != "000000" else "111111")
    check("beginnen Sie von vorn")
    browser.send("/sign-in/code", code=show_code(control, secret, steps=1))
    check("Ihr Konto")
    browser.post("/account/password", {"password": PASSWORD})
    check("Das Formular kam nicht von einer Seite dieser Website.")
    browser.open("/link?token=none")
    check("Bitten Sie um einen neuen.")
    browser.open("/sign-in/operators/key")
    check("Mit einem Schlüssel von Betreibern anmelden")
    browser.send("/sign-in/operators/key", 401, key="tw_admin_none")
    check("Das ist kein Schlüssel von Betreibern")
    browser.open("/sign-in/operators/link?token=none")
    check("tollway operators link")
    assert seen >= 20


def test_operator_signs_in_by_a_link_in_german(control: Running) -> None:
    browser = Browser(control)
    browser.client.headers["accept-language"] = "de"
    link = answered(control.operator().post("/v1/platform/operator_sign_in_links"))["url"]
    browser.open(link)
    assert find_english(browser.page.text) == set() and "einmal einen Betreiber der Plattform" in browser.page.text
    browser.send("/sign-in/operators/link")
    browser.open("/account")
    assert find_english(browser.page.text) == set() and "operator der Plattform" in browser.page.text
    browser.client.cookies.set("tollway_look", "en.dark")
    assert '<html lang="en" data-theme="dark">' in browser.open("/account").text and "Your account" in browser.page.text


def test_person_reads_the_link_that_signs_them_in_in_german(control: Running) -> None:
    admin = control.client(make_tenant(control, "link").admin_key)
    join(control, admin, "grace@example.com")
    (user,) = answered(admin.get("/v1/organization/users", params={"emails": ["grace@example.com"]}))["data"]
    browser = Browser(control)
    browser.client.headers["accept-language"] = "de"
    browser.open(answered(admin.post(f"/v1/organization/users/{user['id']}/sign_in_links"))["url"])
    assert find_english(browser.page.text) == set() and "meldet grace@example.com einmal an" in browser.page.text


def test_every_page_is_in_german_whole(
    control: Running, owner: Browser, operator: Browser, used: TenantSetup, known: dict[str, str]
) -> None:
    tenant = [fill_in(path, used, known) for path in TENANT_PAGES]
    platform = [fill_in_platform(path, control, used) for path in PLATFORM_PAGES]
    found = {}
    for viewer, paths in ((owner, tenant), (operator, [*platform, *tenant])):
        viewer.client.cookies.set("tollway_look", "de.light")
        for path in paths:
            text = viewer.open(path).text
            assert '<html lang="de"' in text, path
            found[path] = find_english(text)
        del viewer.client.cookies["tollway_look"]
    assert [(path, texts) for path, texts in found.items() if texts] == []
