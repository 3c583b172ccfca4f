"""Prints the table of recipes in docs/how-to/adopt-a-script.md from the recipes.

python -m tests.recipe_table
"""

import os

from orchestrator.adopt.recipes import RECIPES, Recipe


def table() -> str:
    """Return the table as Markdown."""
    rows = map(_row, RECIPES)
    head = ["| recipe | program | stands for | directory from | |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


def _row(recipe: Recipe) -> str:
    where = recipe.directory
    for name, choice in recipe.choices.items():
        shown = choice.default or choice.options[0].strip("-").upper()
        where = where.replace(f"{{{name}}}", shown)
    path = os.path.normpath(f"{where}/{recipe.files}")
    options = f"--adopt '{path}' --resume-arg '{recipe.resume_arg}'"
    taken = ", ".join(f"`{choice.options[0]}`" for choice in recipe.choices.values())
    return f"| `{recipe.name}` | {recipe.program} | `{options}` | {taken} | {recipe.note} |"


if __name__ == "__main__":
    print(table(), end="")
