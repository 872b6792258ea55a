"""Currencies: the codes of ISO 4217 and how many decimals their smallest unit has.

Amounts are pico of a currency whatever its decimals, so rating and the ledger never look here. What is paid does: a yen has no
fraction, a dinar has a thousand. Codes that nobody is billed in (funds, metals, bond units, "no currency", tests) are left out.
"""

from dataclasses import dataclass

_BY_MINOR_UNITS = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF",
    2: "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC CUP CVE CZK "
    "DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT "
    "LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN "
    "QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS "
    "VED VES WST XCD XCG YER ZAR ZMW ZWG",
    3: "BHD IQD JOD KWD LYD OMR TND",
}
"""ISO 4217 list one (minor units as the list gives them). MGA and MRU are divided by five; the list gives them two decimals."""


@dataclass(frozen=True, slots=True)
class Currency:
    """A currency. `minor_units`: decimals of the smallest amount that can be paid (2 for cents, 0 for yen)."""

    code: str
    minor_units: int


CURRENCIES: dict[str, Currency] = {
    code: Currency(code, minor_units) for minor_units, codes in _BY_MINOR_UNITS.items() for code in codes.split()
}


def get_currency(code: str) -> Currency:
    """The currency of a code. Raises ValueError for what is none that anybody is billed in."""
    currency = CURRENCIES.get(code)
    if currency is None:
        raise ValueError("it must be the code of a currency (ISO 4217), such as EUR")
    return currency
