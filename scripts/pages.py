"""Count the words of the pages for users, and check the length of every page's lines."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_WORDS = 14_000
MOST_WORDS_OF_README = 1_000  # its table included
MAX_COLUMNS = 120
FOLDERS = ("tutorials", "how-to", "reference", "explanation")


def main() -> int:
    """Print the number of words; return 1 if there are too many or a line is too long."""
    readme = ROOT / "README.md"
    docs = ROOT / "docs"
    pages = [readme, docs / "index.md"]
    pages += sorted(page for folder in FOLDERS for page in (docs / folder).glob("*.md"))
    every = sorted([*ROOT.glob("*.md"), *docs.rglob("*.md")])
    texts = {page: page.read_text(encoding="utf-8") for page in every}
    words = {page: len(texts[page].split()) for page in pages}
    total = sum(words.values())
    print(f"{total:,} words for users on {len(pages)} pages, {words[readme]} of them in README")
    problems = [
        f"{page.relative_to(ROOT)}:{number}: {len(line)} columns, at most {MAX_COLUMNS}"
        for page, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if len(line) > MAX_COLUMNS and not line.startswith("|")  # a row of a table is one line
    ]
    if total > MOST_WORDS:
        problems.append(f"{total:,} words for users, at most {MOST_WORDS:,}")
    if words[readme] > MOST_WORDS_OF_README:
        problems.append(f"{words[readme]} words in README, at most {MOST_WORDS_OF_README}")
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
