"""Spans of SQL statements, in the trace of the operation that sends them (`spans.CURRENT_TRACE`).

A span names the operation and the table, never the statement: the parameters of statements are data of tenants. Attributes are those of the
OpenTelemetry semantic conventions for databases."""

import re
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from tollway.spans import CURRENT_TRACE, SpanKind

_TABLE = re.compile(r"(?:\bFROM|\bINTO|\bUPDATE)\s+\"?(\w+)", re.IGNORECASE)
_BEGAN = "tollway_statement_began_us"
STATEMENTS_REMEMBERED = 1024


@lru_cache(STATEMENTS_REMEMBERED)
def summarize(statement: str) -> tuple[str, str]:
    """Return the operation of a statement, in capitals, and its first table, empty if it names none."""
    operation = statement.split(None, 1)[0].upper() if statement.strip() else ""
    table = _TABLE.search(statement) if operation in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH") else None
    return operation, "" if table is None else table[1]


def trace_statements(engine: sa.Engine) -> None:
    """Let each statement of an engine be a span, where the operation that sends it is traced."""
    system = "postgresql" if engine.dialect.name == "postgresql" else "sqlite"

    @sa.event.listens_for(engine, "before_cursor_execute")
    def begin(connection: sa.Connection, _cursor: Any, _statement: str, _parameters: Any, _context: Any, _many: bool) -> None:
        trace = CURRENT_TRACE.get()
        if trace is not None:
            connection.info[_BEGAN] = trace.now_us()

    @sa.event.listens_for(engine, "after_cursor_execute")
    def end(connection: sa.Connection, _cursor: Any, statement: str, _parameters: Any, _context: Any, _many: bool) -> None:
        _add(connection, statement, "")

    @sa.event.listens_for(engine, "handle_error")
    def fail(context: sa.engine.ExceptionContext) -> None:
        if context.connection is not None and context.statement is not None:
            _add(context.connection, context.statement, type(context.original_exception).__name__)

    def _add(connection: sa.Connection, statement: str, error: str) -> None:
        trace = CURRENT_TRACE.get()
        began_us = connection.info.pop(_BEGAN, None)
        if trace is None or began_us is None:
            return
        operation, table = summarize(statement)
        attributes = {"db.system.name": system, "db.operation.name": operation}
        if table:
            attributes["db.collection.name"] = table
        trace.add(f"{operation} {table}".rstrip(), SpanKind.CLIENT, began_us, error, attributes)
