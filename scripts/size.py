"""Print the size of every package in AST nodes: `python scripts/size.py [FOLDER]`.

Nodes do not depend on how lines are broken. Nothing is asserted: it shows what a change adds.
"""

import ast
import sys
from collections import Counter
from pathlib import Path


def node_count(file: Path) -> int:
    """Count the AST nodes of a Python file."""
    return sum(1 for _ in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))


def main() -> None:
    """Print one line per package, the largest first, and the total."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "clipmerge")
    nodes: Counter[str] = Counter()
    for file in root.rglob("*.py"):
        nodes[file.relative_to(root).parts[0].removesuffix(".py")] += node_count(file)
    for package, count in nodes.most_common():
        print(f"{count:>8,}  {package}")
    print(f"{nodes.total():>8,}  {root.name}")


if __name__ == "__main__":
    main()
