"""Statements about many rows: a parameter for each value, and a statement compiled anew each time, cost more than the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import KeyedColumnElement

_POSTGRESQL = "postgresql"


class Bulk:
    """A statement about given rows, compiled once for each dialect: SQLAlchemy keeps no upsert that it compiled.

    Args:
        build: Makes the statement for a dialect, with `given` or `insert_given`.
    """

    def __init__(self, build: Callable[[str], sa.ClauseElement]) -> None:
        self._build = build
        self._compiled: dict[str, tuple[str, int]] = {}

    async def execute(self, connection: AsyncConnection, columns: Mapping[str, Sequence[Any]]) -> sa.CursorResult[Any]:
        """Executes it with rows given column by column, in the order in which the statement names them."""
        dialect = connection.dialect
        if dialect.name not in self._compiled:
            made = self._build(dialect.name).compile(dialect=dialect)
            # How often it asks for the rows.
            self._compiled[dialect.name] = str(made), len(getattr(made, "positiontup", ()))
        text, times = self._compiled[dialect.name]
        # Of all ways to hand rows over, one text of JSON costs the driver and both databases the least.
        rows = msgspec.json.encode(list(zip(*columns.values(), strict=True))).decode()
        return await connection.exec_driver_sql(text, (rows,) * times)


def given(dialect: str, columns: Sequence[KeyedColumnElement[Any]]) -> sa.FromClause:
    """The rows that a statement is given, with these columns."""
    rows = sa.bindparam("given_rows", type_=sa.Text)
    as_json = sa.func.jsonb_array_elements(sa.cast(rows, postgresql.JSONB))
    each = as_json if dialect == _POSTGRESQL else sa.func.json_each(rows)
    fields = [
        sa.cast(sa.literal_column(f"value ->> {index}", sa.Text), column.type).label(column.key)
        for index, column in enumerate(columns)
    ]
    return sa.select(*fields).select_from(each.table_valued("value", name="each_row")).subquery("given")


def is_given(dialect: str, columns: Sequence[KeyedColumnElement[Any]]) -> sa.ColumnElement[bool]:
    """Whether a row of a table that is filled and emptied all the time has the values of a given one in these columns.

    What PostgreSQL knows of the size of such a table is wrong most of the time, and a join that it plans by that may compare
    everything with everything. So it gets nothing to join, but a range of the first column, and a set to look up in.
    """
    first = given(dialect, columns[:1]).c[columns[0].key]
    least, most = (sa.select(function(first)).scalar_subquery() for function in (sa.func.min, sa.func.max))
    wanted = sa.select(*(given(dialect, columns).c))
    return sa.and_(columns[0] >= least, columns[0] <= most, sa.tuple_(*columns).in_(wanted).is_(sa.true()))


def insert_given(dialect: str, table: sa.Table, names: Sequence[str]) -> postgresql.Insert | sqlite.Insert:
    """An insert of given rows of these columns, which may say what to do about conflicts."""
    rows = given(dialect, [table.c[name] for name in names])
    # SQLite's grammar needs a condition before ON CONFLICT.
    return upsert(dialect, table).from_select(list(names), sa.select(rows).where(sa.true()))


def upsert(dialect: str, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """An insert that may say what to do about conflicts: the two dialects have the same clause, each in its own class."""
    return postgresql.insert(table) if dialect == _POSTGRESQL else sqlite.insert(table)
