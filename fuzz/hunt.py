"""One search, guided by coverage: `python -m fuzz.hunt PARSER CORPUS FINDINGS [libFuzzer's options]`. Ends by libFuzzer's own exit.

What is instrumented is our Python; llhttp, jiter and msgspec are not, so the seeds lead into them. An input that breaks a promise is
written to FINDINGS, once for each place where it broke, and the search goes on. What hangs or dies is libFuzzer's to report.
"""

import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tollway"], enable_loader_override=False):
    from fuzz import parsers, seeds


def main(arguments: list[str]) -> None:
    """Search until libFuzzer's bounds are reached."""
    parser, corpus, findings = arguments[1], Path(arguments[2]), Path(arguments[3])
    check = parsers.PARSERS[parser]
    for seed in seeds.seeds(parser):
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    dictionary = corpus.with_suffix(".dict")
    dictionary.write_text("".join(f'"{_escape(piece)}"\n' for piece in seeds.fragments(parser) if piece))
    broken: set[tuple[str, str, int]] = set()

    def try_input(data: bytes) -> None:
        try:
            check(data)
        except Exception as error:  # whatever escapes is what is searched for
            place = _place(error)
            if place not in broken:
                broken.add(place)
                (findings / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
                print(f"{parser}: {place[0]} at {place[1]}:{place[2]}: {str(error)[:100]}", file=sys.stderr, flush=True)

    atheris.Setup([arguments[0], *arguments[4:], f"-dict={dictionary}", str(corpus)], try_input)
    atheris.Fuzz()


def _place(error: Exception) -> tuple[str, str, int]:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return type(error).__name__, traceback.tb_frame.f_code.co_filename if traceback else "", traceback.tb_lineno if traceback else 0


def _escape(piece: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in piece)


if __name__ == "__main__":
    main(sys.argv)
