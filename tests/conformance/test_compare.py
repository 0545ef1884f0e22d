"""The comparison of two servers says what differs, and whether it was meant to."""

from pathlib import Path

import pytest
from tests.conformance.compare import Outcome, Outcomes, compare, read_report

YES, NO = Outcome(True, None), Outcome(False, None)
MARKED, MARKED_NO = Outcome(True, "on purpose"), Outcome(False, "on purpose")
SOMETIMES = Outcome(True, "by chance", is_sometimes=True)


@pytest.mark.parametrize(
    ("perdure", "reference", "is_as_meant", "said"),
    [
        ({"a": YES}, {"a": YES}, True, "both servers pass 1"),
        ({"a": NO}, {"a": YES}, False, "perdure fails:\n  a"),
        ({"a": NO}, {"a": NO}, False, "perdure fails:\n  a"),
        ({"a": YES}, {"a": NO}, False, "only perdure passes, without a reason:\n  a"),
        ({"a": YES}, {}, False, "only perdure passes, without a reason:\n  a"),
        ({"a": MARKED}, {"a": MARKED_NO}, True, "differs on purpose (1): on purpose"),
        ({"a": MARKED}, {"a": MARKED}, False, "marked as different, but both pass:\n  a"),
        ({"a": SOMETIMES}, {"a": SOMETIMES}, True, "both servers pass 1"),
        ({"a": SOMETIMES}, {"a": NO}, True, "differs on purpose (1): by chance"),
        ({"a": MARKED_NO}, {"a": MARKED_NO}, False, "perdure fails:\n  a"),
        ({}, {}, False, "0 tests"),
    ],
)
def test_comparing(perdure: Outcomes, reference: Outcomes, is_as_meant: bool, said: str) -> None:
    text, verdict = compare(perdure, reference)

    assert verdict is is_as_meant
    assert said in text


def test_reading_a_report(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        """<testsuites><testsuite>
        <testcase classname="tests.conformance.test_x" name="test_a[1]"/>
        <testcase classname="tests.conformance.test_x" name="test_b">
          <properties><property name="differs" value="why"/></properties><failure/></testcase>
        <testcase classname="tests.conformance.test_x" name="test_c"><error/></testcase>
        </testsuite></testsuites>"""
    )

    assert read_report(report) == {
        "test_x::test_a[1]": YES,
        "test_x::test_b": Outcome(False, "why"),
        "test_x::test_c": NO,
    }


def test_every_reason_is_in_the_document(request: pytest.FixtureRequest) -> None:
    """What tests call an intended difference, users can read about."""
    root = request.config.rootpath
    document = " ".join((root / "docs" / "compatibility.md").read_text().split())
    marks = [mark for item in request.session.items for mark in item.iter_markers("differs")]

    assert all(mark.args[0] in document for mark in marks)


def test_every_test_that_the_document_names_exists(request: pytest.FixtureRequest) -> None:
    root = request.config.rootpath
    text = (root / "docs" / "compatibility.md").read_text()
    named = {word.strip("`,:;)") for word in text.replace("|", " ").split() if ".py`" in word}

    assert len(named) > 10
    existing = {path.name for path in (root / "tests").rglob("test_*.py")}
    assert not named - existing
