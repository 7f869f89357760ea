"""What the renderers share: committed results, Markdown tables, numbers as they are printed."""

import json
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@cache
def load(name: str) -> Any:
    """Read one committed result file, once for all tables that show it."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Write a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def origin(document: Any) -> str:
    """Say how and where a file's figures were made."""
    machine = document["machine"]
    found = document.get("versions") or machine.get("versions", {})
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    where = machine.get("processor") or machine.get("platform", "")
    cores = f", {machine['cores']} cores" if "cores" in machine else ""
    return f"`{document['command']}`; {where}{cores}, Python {machine['python']}, {versions}."


def ratio(value: Any) -> str:
    """Write a median ratio with its quartiles."""
    return f"{value['median']:.3f} [{value['lower_quartile']:.3f}, {value['upper_quartile']:.3f}]"


def mib(count: float) -> str:
    """Write bytes in MiB."""
    return f"{count / 2**20:.1f}"


def session(heading: str, result: Any, more: str = "") -> str:
    """The commands of one run, what they said, and how long they took."""
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in result["seconds"].items())
    said = "\n>\n".join(f"> {message['event']}: {message['message']}" for message in result["messages"])
    commands = "\n".join(f"    {command}" for command in result["commands"])
    return f"### {heading}\n\n{commands}\n\n{said}\n\n{more}Took {seconds}."
