"""Whether a question is one that its passage answers: by rules, of which no reward model has ever heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.data.question_generation.subjects import Kind, kinds


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is right about a question.

    Attributes:
        ends: it is one question, closed by its only question mark. names: it names the passage's subject.
        answerable: what it asks for is stated in the passage. well_formed: it is worded as a question of its kind is.
    """

    ends: bool
    names: bool
    answerable: bool
    well_formed: bool

    @property
    def good(self) -> bool:
        """Whether all of it is."""
        return self.ends and self.names and self.answerable and self.well_formed


def verdict(question: str, *, kind: str, subject: str, stated: Sequence[str]) -> Verdict:
    """Judge a question about a passage.

    Args:
        question: as a model wrote it; blanks do not count.
        kind, subject, stated: of the passage, as the generator's rows have them.
    """
    text = "".join(question.split())
    asked = asked_for(text, kinds()[kind], subject)
    return Verdict(
        ends=text.endswith("？") and text.count("？") == 1 and "。" not in text,
        names=text.count(subject) == 1,
        answerable=asked is not None and asked[0] in stated,
        well_formed=asked is not None and asked[1],
    )


def asked_for(question: str, kind: Kind, subject: str) -> tuple[str, bool] | None:
    """The attribute that a question asks for, and whether it is worded exactly so; None where it asks for none.

    The wording may stand anywhere in the question, and about any subject; the longest one counts.
    """
    found: tuple[int, str, bool] | None = None
    for attribute in kind.attributes.values():
        for ask in attribute.asks:
            before, _, after = ask.partition("{n}")
            exact = question == ask.format(n=subject)
            after = after.removesuffix("？")
            if exact or (before in question and after in question):
                length = len(before) + len(after) + 100 * exact
                if found is None or length > found[0]:
                    found = (length, attribute.name, exact)
    return None if found is None else found[1:]
