"""The figures as a Markdown section for `benchmarks/RESULTS.md`."""

from typing import Any


def markdown(run: dict[str, Any]) -> str:
    """One table per measurement, under a head that names the card, the date and the command."""
    machine = run["machine"]
    lines = [
        f"## On one {machine['card']}",
        "",
        f"`{run['command']}`, {run['date']}: {machine['card']}, torch {machine['torch']}, Python {machine['python']}.",
    ]
    for measured in run["measurements"]:
        lines += ["", f"### {measured['title']}", "", f"{measured['status']}, {measured['seconds']:.0f} s."]
        if measured["figures"]:
            lines += ["", "| what | figure | aim | |", "|---|---|---|---|"]
            lines += [_row(figure) for figure in measured["figures"]]
    return "\n".join(lines) + "\n"


def _row(figure: dict[str, Any]) -> str:
    value, aim = figure["value"], figure.get("aim")
    shown = "not measured" if value is None else f"{value:.4g} {figure['unit']}".strip()
    bound = f"{aim['sign']} {aim['bound']:g}{'' if figure['met'] else ', missed'}" if aim else ""
    note = figure["note"].removeprefix("not measured: ").replace("|", "/")
    return f"| {figure['name']} | {shown} | {bound} | {note} |"
