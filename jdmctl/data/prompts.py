"""A list of prompts and nothing else: conditions then come from the student's own pictures."""

from __future__ import annotations

from pathlib import Path

from jdmctl.data.metadata import problem_of_text, read_lines, read_rows
from jdmctl.errors import BadInputError


class PromptList:
    """One prompt a line (.txt), or one {"text": ...} a line (.jsonl); blank lines do not count."""

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if path.suffix == ".jsonl":
            self._texts = [row["text"] for row in read_rows(path, problem_of_text)]
        elif path.suffix == ".txt":
            self._texts = read_lines(path)
        else:
            raise BadInputError(f"{path} is no list of prompts", hint="give a .txt or .jsonl file, one prompt a line")
        if not self._texts:
            raise BadInputError(f"{path} has no prompts", hint="write one prompt a line")

    def __len__(self) -> int:
        return len(self._texts)

    def text(self, index: int) -> str:
        return self._texts[index]
