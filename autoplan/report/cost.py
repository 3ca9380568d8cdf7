"""Section "Cost": what the trainings need, before they begin."""

from autoplan import cost
from autoplan.facts import Plan, to_dict
from autoplan.report.blocks import Row, Section, Table, Text, words


def section(plan: Plan, bill: cost.Bill | None) -> Section:
    """What each configuration needs, and how far that can be trusted.

    Args:
        plan: whose name the command has.
        bill: what `cost` has computed; None where it has not.
    """
    if bill is None:
        text = f"Not computed yet. The command, which takes about a minute: python -m autoplan cost {plan.name}"
        return Section("cost", "Cost", [Text(text)])
    head, *lines = cost.rows(bill)
    table = Table("What trainings need", head, [Row(words(*line)) for line in lines], text=len(head))
    return Section("cost", "Cost", [table, *map(Text, cost.notes(bill))], to_dict(bill))
