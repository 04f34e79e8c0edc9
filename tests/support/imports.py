"""What modules of tokenbridge import of each other, read from their text."""

import ast
from pathlib import Path

from tests.support.checkout import CHECKOUT

PACKAGE = CHECKOUT / "tokenbridge"


def imported_modules(module: Path) -> set[Path]:
    """Files of the modules and packages of tokenbridge that a module imports, in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tokenbridge":
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    places = [CHECKOUT / name.replace(".", "/") for name in names]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return {file for file in files if file.exists()}
