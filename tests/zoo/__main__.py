"""``make check-zoo``: every type, and the pages that say what was found."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tests.zoo.examine import Entry
from tests.zoo.known import FILE, known_types, written
from tests.zoo.models import types
from tests.zoo.page import table_page, with_counts
from tests.zoo.sweep import sweep

PAGE = Path("docs/compatibility.md")
TABLE = Path("docs/compatibility-table.md")


def main() -> int:
    """Examine the types; 1 if any fails."""
    parser = argparse.ArgumentParser(prog="check-zoo", description=__doc__)
    parser.add_argument("types", nargs="*", help="only these model types; the pages stay")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    chosen = [pair for pair in types() if not arguments.types or pair[1] in arguments.types]
    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("types", total=len(chosen))

        def done(entry: Entry) -> None:
            progress.update(bar, advance=1, description=entry.model_type)
            if entry.status != "holds":
                console.print(f"{entry.status} {entry.task} {entry.model_type}: {entry.reason}")

        entries = sweep(chosen, arguments.processes, done)
    if not arguments.types:
        TABLE.write_text(table_page(entries), "utf-8")
        PAGE.write_text(with_counts(PAGE.read_text("utf-8"), entries), "utf-8")
        FILE.write_text(written(known_types(entries)), "utf-8")
        console.print(f"wrote {TABLE}, {PAGE} and {FILE}")
    failed = sum(entry.status == "fails" for entry in entries)
    console.print(f"{len(entries)} types, {failed} fail")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
