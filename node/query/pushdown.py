"""What a plan says about the rows it needs: filters of each scan, read off the optimized plan.

Of filters joined by AND these are understood: comparisons of a column with a value, lists of
values, and OR of equalities on one column; whatever else a filter says is left to whoever filters.
A sort of which only the first rows are asked for is understood if nothing between it and the scan
drops rows. Imported lazily.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from perdure.node.query.bounds import ALWAYS, Order, Restriction, Span
from perdure.node.query.libraries import arrow
from perdure.node.query.libraries import expressions as ast

# A list longer than this reads the table rather than ranges.
_VALUES_MAX = 10_000
_ORDERED_BY = "created_at"
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "="}


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan of a table: what its rows must meet, and all columns its filters look at; None:
    nobody knows. ``order``: the rows that are enough, if not all are needed. ``is_void``: its
    filters contradict each other."""

    table: str
    restriction: Restriction
    filtered: frozenset[str] | None
    order: Order | None
    is_void: bool


@dataclass(frozen=True, slots=True)
class _Sorted:
    """What is asked for of the rows that come out of a part of the plan."""

    column: str
    order: Order


def scans(plan: Any) -> list[Scan]:
    """The scans of a plan."""
    return list(_walk(plan, [], None))


def _walk(plan: Any, above: list[Any], wanted: _Sorted | None) -> Iterator[Scan]:
    """``above``: conditions that hold for all rows that are used; ``wanted``: which are enough."""
    node = _variant(plan)
    inputs = plan.inputs()
    match node:
        case ast.TableScan():
            yield _scan(node, above, wanted)
            return
        case ast.Filter() if len(inputs) == 1:
            yield from _walk(inputs[0], [*above, node.predicate()], None)
            return
        case ast.SubqueryAlias() if len(inputs) == 1:
            yield from _walk(inputs[0], [], wanted)
            return
        case ast.Projection() if len(inputs) == 1:
            below = _below_projection(node, wanted) if wanted is not None else None
            yield from _walk(inputs[0], [], below)
            return
        case ast.Sort() if len(inputs) == 1:
            yield from _walk(inputs[0], [], _sorted(node))
            return
        case _:
            pass
    for child in inputs:
        yield from _walk(child, [], None)


def _sorted(node: Any) -> _Sorted | None:
    count = node.get_fetch_val()
    first = node.sort_exprs()[0]
    column = _column(first.expr())
    if count is None or column is None:
        return None
    return _Sorted(column, Order(count, not first.ascending()))


def _below_projection(node: Any, wanted: _Sorted) -> _Sorted | None:
    """The same of the projection's input, where the column may have another name."""
    for expression in node.projections():
        found = _variant(expression)
        if isinstance(found, ast.Column) and found.name() == wanted.column:
            return wanted
        if isinstance(found, ast.Alias) and found.alias() == wanted.column:
            column = _column(found.expr())
            return _Sorted(column, wanted.order) if column is not None else None
    return None


def _scan(node: Any, above: list[Any], wanted: _Sorted | None) -> Scan:
    equal: dict[str, frozenset[object]] = {}
    unequal: dict[str, frozenset[object]] = {}
    spans: dict[str, Span] = {}
    filters = node.filters()
    for condition in [*filters, *above]:
        for part in _conjuncts(condition):
            if (found := _values(part)) is not None:
                column, values = found
                known = equal.get(column)
                equal[column] = values if known is None else known & values
            elif (found := _barred(part)) is not None:
                column, values = found
                unequal[column] = unequal.get(column, frozenset()) | values
            elif (spanned := _span(part)) is not None:
                column, span = spanned
                old = spans.get(column, ALWAYS)
                spans[column] = Span(max(old.lower, span.lower), min(old.upper, span.upper))
    order = wanted.order if wanted is not None and wanted.column == _ORDERED_BY else None
    restriction = Restriction(equal, unequal, spans)
    is_void = any(_never_holds(condition) for condition in filters)
    return Scan(node.table_name(), restriction, _columns(filters), order, is_void)


def _conjuncts(condition: Any) -> Iterator[Any]:
    pending = [condition]
    while pending:
        each = pending.pop()
        node = _variant(each)
        if isinstance(node, ast.BinaryExpr) and node.op() == "AND":
            pending += (node.left(), node.right())
        else:
            yield each


def _values(condition: Any) -> tuple[str, frozenset[object]] | None:
    """The column that a condition restricts to values; None when it does something else."""
    node = _variant(condition)
    if isinstance(node, ast.InList):
        return None if node.negated() else _listed(node)
    if not isinstance(node, ast.BinaryExpr):
        return None
    if node.op() == "OR":
        left, right = _values(node.left()), _values(node.right())
        if left is None or right is None or left[0] != right[0]:
            return None
        return left[0], left[1] | right[1]
    if node.op() != "=":
        return None
    for one, other in ((node.left(), node.right()), (node.right(), node.left())):
        column, value = _column(one), _literal(other)
        if column is not None and value is not None:
            return column, frozenset((value,))
    return None


def _barred(condition: Any) -> tuple[str, frozenset[object]] | None:
    """The column that a condition keeps from having values."""
    node = _variant(condition)
    if isinstance(node, ast.InList):
        return _listed(node) if node.negated() else None
    if not isinstance(node, ast.BinaryExpr) or node.op() not in ("!=", "<>"):
        return None
    for one, other in ((node.left(), node.right()), (node.right(), node.left())):
        column, value = _column(one), _literal(other)
        if column is not None and value is not None:
            return column, frozenset((value,))
    return None


def _listed(node: Any) -> tuple[str, frozenset[object]] | None:
    column = _column(node.expr())
    values = [_literal(each) for each in node.list()]
    if column is None or None in values or len(values) > _VALUES_MAX:
        return None
    return column, frozenset(values)


def _span(condition: Any) -> tuple[str, Span] | None:
    """The column that a condition restricts to some time."""
    node = _variant(condition)
    if not isinstance(node, ast.BinaryExpr) or node.op() not in _MIRRORED:
        return None
    for one, other, operator in (
        (node.left(), node.right(), node.op()),
        (node.right(), node.left(), _MIRRORED[node.op()]),
    ):
        column, time_ms = _column(one), _time_ms(other)
        if column is not None and time_ms is not None:
            return column, _compared(operator, time_ms)
    return None


def _compared(operator: str, time_ms: int) -> Span:
    match operator:
        case "<":
            return Span(ALWAYS.lower, time_ms)
        case "<=":
            return Span(ALWAYS.lower, time_ms + 1)
        case ">":
            return Span(time_ms + 1, ALWAYS.upper)
        case ">=":
            return Span(time_ms, ALWAYS.upper)
        case _:
            return Span(time_ms, time_ms + 1)


def _never_holds(condition: Any) -> bool:
    """Whether it was seen through, down to a value that isn't true."""
    if not isinstance(_variant(condition), ast.Literal):
        return False
    value = condition.python_value()
    return not (value.as_py() if hasattr(value, "as_py") else value)


def _column(expression: Any) -> str | None:
    node = _variant(expression)
    return node.name() if isinstance(node, ast.Column) else None


def _literal(expression: Any) -> object | None:
    """The value of a text or number; None for anything else."""
    if not isinstance(_variant(expression), ast.Literal):
        return None
    value = expression.python_value()
    value = value.as_py() if hasattr(value, "as_py") else value
    return value if isinstance(value, str | int) else None


def _time_ms(expression: Any) -> int | None:
    """The value of a time in the unit of the columns; None for anything else."""
    if not isinstance(_variant(expression), ast.Literal):
        return None
    value = expression.python_value()
    if not isinstance(value, arrow.TimestampScalar) or value.type.unit != "ms":
        return None
    time_ms: int | None = value.value
    return time_ms


def _columns(filters: list[Any]) -> frozenset[str] | None:
    """All columns that filters look at; None when one can't be seen through."""
    columns: set[str] = set()
    pending = list(filters)
    while pending:
        each = pending.pop()
        match _variant(each):
            case ast.Column() as column:
                columns.add(column.name())
            case ast.Literal():
                pass  # its only operand is itself
            case None:
                return None
            case _:
                pending.extend(each.rex_call_operands())
    return frozenset(columns)


def _variant(expression: Any) -> Any:
    """The expression's own kind; None for those that the bindings can't show."""
    try:
        return expression.to_variant()
    except Exception:  # bulkhead: the bindings don't say beforehand what they can't show
        return None
