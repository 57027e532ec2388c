"""Why a statement failed, finer than the limits it met: from the messages of SQLite and PostgreSQL."""

from __future__ import annotations

import re

from posttrain.rewards.sql.sandbox import Execution

# The first that fits decides.
_CLASSES = tuple(
    (re.compile(pattern, re.IGNORECASE), error_class)
    for pattern, error_class in (
        (r"ambiguous", "ambiguous_column"),
        (r"no such table|relation .* does not exist|missing FROM-clause entry|table .* doesn't exist", "no_such_table"),
        (r"no such function|function .* does not exist|unknown function", "no_such_function"),
        (r"no such column|has no column|column .* does not exist|unknown column", "no_such_column"),
        (r"misuse of (aggregate|window)|must appear in the GROUP BY|not allowed in WHERE", "misused_aggregate"),
        (r"a GROUP BY clause is required|aggregate functions? (are|calls)", "misused_aggregate"),
        (r"wrong number of arguments|does not accept", "wrong_arguments"),
        (r"do not have the same number of result columns|must have the same number of columns", "wrong_set_operation"),
        (r"sub-?(select|query) (returns|has|must return)|row value misused|more than one row", "wrong_subquery"),
        (r"operator does not exist|invalid input (syntax|value)|cannot cast|datatype mismatch", "type_mismatch"),
        (r"UNION types|must be type|cannot be matched", "type_mismatch"),
        (r"division by zero", "division_by_zero"),
        (r"ORDER BY term|LIMIT clause should|GROUP BY term|out of range - should be", "wrong_clause"),
        (r"ORDER BY clause should|LIMIT must not|HAVING clause on", "wrong_clause"),
        (r"syntax error|incomplete input|unrecognized token|unterminated|expected expression", "syntax"),
    )
)


def finer_class(execution: Execution) -> str:
    """The class of a failed execution; where the sandbox says "other", what the database's message says.

    >>> finer_class(Execution(None, "ambiguous column name: name", error_class="other"))
    'ambiguous_column'
    """
    if execution.error_class not in (None, "other"):
        return str(execution.error_class)
    message = execution.error or ""
    return next((name for pattern, name in _CLASSES if pattern.search(message)), "other")
