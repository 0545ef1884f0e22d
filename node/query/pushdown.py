"""What a plan says about the rows it needs: filters of each scan, read off the optimized plan.

Only equalities and lists of values joined by AND are understood, and OR of either on one column;
whatever else a filter says is left to whoever filters. Imported lazily.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from perdure.node.query.bounds import Equalities
from perdure.node.query.libraries import expressions as ast

# A list longer than this reads the table rather than ranges.
_VALUES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan of a table: what its rows must equal, and all columns its filters look at; None:
    nobody knows."""

    table: str
    equalities: Equalities
    filtered: frozenset[str] | None


def scans(plan: Any) -> list[Scan]:
    """The scans of a plan."""
    return list(_walk(plan, []))


def _walk(plan: Any, above: list[Any]) -> Iterator[Scan]:
    node = _variant(plan)
    inputs = plan.inputs()
    match node:
        case ast.TableScan():
            yield _scan(node, above)
        case ast.Filter() if len(inputs) == 1:
            yield from _walk(inputs[0], [*above, node.predicate()])
            return
        case _:
            pass
    for child in inputs:
        yield from _walk(child, [])


def _scan(node: Any, above: list[Any]) -> Scan:
    equalities: dict[str, frozenset[object]] = {}
    filters = node.filters()
    filtered = _columns(filters)
    for condition in [*filters, *above]:
        for part in _conjuncts(condition):
            found = _values(part)
            if found is None:
                continue
            column, values = found
            known = equalities.get(column)
            equalities[column] = values if known is None else known & values
    return Scan(node.table_name(), equalities, filtered)


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
    if isinstance(node, ast.InList) and not node.negated():
        column = _column(node.expr())
        values = [_literal(each) for each in node.list()]
        if column is None or None in values or len(values) > _VALUES_MAX:
            return None
        return column, frozenset(values)
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
