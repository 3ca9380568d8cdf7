"""How often the doctor of the report finds what is wrong, and what it says of datasets that are right.

Of each fault in `tests/faulty.py`, some datasets are made that have it and nothing else. A finding of its kind that
names its case is one found, none is one not found, and any other that the fault does not explain is a false one.
Then it looks at real datasets, whose findings have to be judged by eye.

    python benchmarks/doctor.py [--seeds 5] [FOLDER ...]
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from faulty import FAULTS, Fault, findings, write

from autoplan.base.tables import table


def judged(fault: Fault, seed: int) -> Counter[str]:
    """What the doctor says of one dataset with a fault."""
    with tempfile.TemporaryDirectory() as folder:
        made = write(Path(folder) / "Task01_Made", seed=seed, modality=fault.modality)
        fault.make(made)
        found = findings(made.folder, Path(folder) / "kept")
    named = [name for f in found if f.kind == fault.kind for hit in f.hits for name in (hit.case, hit.other)]
    false = sum(len(f.hits) for f in found if f.kind not in (fault.kind, *fault.also))
    return Counter({"found": fault.case in named, "not found": fault.case not in named, "falsely found": false})


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    nothing = Fault("none", "", lambda _: None, "no case")
    header = ("fault", "finding", "found", "not found", "falsely found")
    rows = []
    for fault in (*FAULTS, nothing):
        total = sum((judged(fault, seed) for seed in range(given.seeds)), Counter())
        found = [str(total["found"]), str(total["not found"])] if fault.kind else ["-", "-"]
        rows.append((fault.name, fault.kind, *found, str(total["falsely found"])))
    print(table([header, *rows], left=2))
    for folder in given.folders:
        print(f"\n{folder.name}")
        with tempfile.TemporaryDirectory() as kept:
            for f in findings(folder, Path(kept)):
                print(f"  {f.kind}: {len(f.hits)}")
                for hit in f.hits[:5]:
                    print(f"    {hit.case} {hit.what}")


if __name__ == "__main__":
    main()
