"""Section "Cost": what the trainings need, before they begin, and how a given time was used."""

from collections.abc import Sequence
from dataclasses import asdict

from autoplan.base.codec import to_dict
from autoplan.base.tables import duration
from autoplan.budget.ledger import Spent
from autoplan.cost import bill as cost
from autoplan.planning.values import Plan
from autoplan.report.blocks import Row, Section, Table, Text, words


def section(plan: Plan, bill: cost.Bill | None, spent: Sequence[Spent] = ()) -> Section:
    """What each configuration needs, and how far that can be trusted.

    Args:
        plan: whose name the command has.
        bill: what `cost` has computed; None where it has not.
        spent: how much of its time each command with a budget has used.
    """
    used = [Text(_told(entry)) for entry in spent]
    data = {"budgets": [asdict(entry) for entry in spent]} if spent else {}
    if bill is None:
        text = (
            "What the paper's recipe needs is not computed yet. The command, which takes about a minute: "
            f"python -m autoplan cost {plan.name}"
        )
        return Section("cost", "Cost", [*used, Text(text)], data)
    head, *lines = cost.rows(bill)
    table = Table("What trainings need", head, [Row(words(*line)) for line in lines], text=len(head))
    return Section("cost", "Cost", [*used, table, *map(Text, cost.notes(bill))], {**to_dict(bill), **data})


def _told(spent: Spent) -> str:
    """How a given time was used, in words."""
    gone, given = duration(spent.gone), duration(spent.seconds)
    said = [f"{spent.command}, for a given time: {gone} of {given} are gone."]
    return " ".join([*said, *(f"No time for {text}." for text in spent.left_out)])
