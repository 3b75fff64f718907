"""The table of methods, made from the code."""

from __future__ import annotations

import inspect

from sharpkern.variants import VARIANTS


def methods() -> list[tuple[str, str, str, str]]:
    """One row a method: its name, its formula and source, its own options, the backward passes a step takes."""
    rows = []
    shared = {"self", "params", "base_optimizer", "options"}
    for variant in VARIANTS:
        first = (inspect.getdoc(variant) or "").split("\n\n")[0].replace("\n", " ")
        options = [
            f"{name}={parameter.default!r}"
            for name, parameter in inspect.signature(variant).parameters.items()
            if name not in shared
        ]
        rows.append((variant.__name__, first, ", ".join(options), str(variant.backward_passes())))
    return rows


def methods_markdown() -> str:
    """The same as a table in Markdown."""
    lines = ["| method | perturbation and source | options and their defaults | backward passes |", "|---|---|---|---|"]
    for name, formula, options, passes in methods():
        escaped = formula.replace("|", "\\|")
        lines.append(f"| `{name}` | {escaped} | `{options}` | {passes} |")
    return "\n".join(lines)
