"""The report's first page: what of the paper holds here, table by table, and what another seed may decide."""

from collections.abc import Iterator, Mapping, Sequence

from user_llm.launch.plan import Plan
from user_llm.launch.report.names import table_name
from user_llm.launch.report.orderings import NOISE, REVERSED, Ordering, by_verdict, in_words
from user_llm.launch.report.tables import command, some_datasets
from user_llm.launch.sweeps import TABLES

_NO_REASON = "No reason is written down yet (`notes.md`)."


def overview(plan: Plan, found: Mapping[str, Sequence[Ordering]], notes: Mapping[str, str]) -> Iterator[str]:
    """Counts of all tables, a sentence of each, and what is close; Markdown.

    Args:
      found: table → its orderings; Figure 3's are those of Table 11.
      notes: table → why it came out so, as somebody wrote.
    """
    tested = {name: some for name, some in found.items() if some}
    if not tested:
        yield "Nothing can be said yet: no two runs that the paper compares are finished."
        return
    yield "Pairs of models that the paper puts in an order, on the same test users of ours:"
    lines = [_counts(f"{table_name(name)}. {TABLES[name].title}", some) for name, some in tested.items()]
    once = list({one.what: one for some in tested.values() for one in some}.values())
    lines.append(_counts("**All**, each pair once", once))
    yield "\n".join(["| | hold | reversed | open |", "| --- | ---: | ---: | ---: |", *lines])
    settled = sum(one.verdict != NOISE for one in once)
    yield f"**{settled} of {len(once)} are decided** ({settled / len(once):.0%})."
    yield "\n".join(_sentence(name, some, notes) for name, some in tested.items())
    yield from _close(plan, tested)


def _counts(name: str, found: Sequence[Ordering]) -> str:
    return f"| {name} | {' | '.join(str(len(some)) for some in by_verdict(found).values())} |"


def _sentence(name: str, found: Sequence[Ordering], notes: Mapping[str, str]) -> str:
    text = f"- **{table_name(name)}.** {in_words(found, name)}"
    if name in notes:
        return f"{text} Reason: {' '.join(notes[name].split())}"
    return f"{text} {_NO_REASON}" if by_verdict(found)[REVERSED] else text


def _close(plan: Plan, tested: Mapping[str, Sequence[Ordering]]) -> Iterator[str]:
    """The orderings that another seed may decide otherwise, and how to run it; each at its first table."""
    seen: set[tuple] = set()
    lines = []
    for name, some in tested.items():
        close = [one for one in some if one.is_close and one.what not in seen]
        seen |= {one.what for one in close}
        if close:
            cells = [one.ahead for one in close]
            wanted = command(plan, [name], some_datasets(cells, plan), [max(plan.seeds) + 1])
            lines.append(f"- {table_name(name)}, {len(close)} of {len(some)}: `{wanted}`")
    if lines:
        yield (
            f"<details><summary>{len(seen)} of these have an interval that ends close to 0, within a quarter of its "
            "width: another seed may decide them</summary>"
        )
        yield "\n".join(lines)
        yield "Runs that tables share happen once.\n\n</details>"
