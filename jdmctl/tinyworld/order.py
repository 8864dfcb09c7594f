"""What a build was asked for, kept beside what it makes, so that no other request is answered with that."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from jdmctl.errors import JdmError
from jdmctl.training.atomic import write_text

ORDER_FILE = "order.json"


@dataclass(frozen=True)
class Order:
    """Two builds that are alike in it are one."""

    pictures: str  # their folder; "" for the rendered scenes, or those of the world in use
    budget: float
    seed: int
    content: str = ""  # a digest of the pictures in that folder, and of their captions

    @classmethod
    def of(cls, folder: Path) -> Order | None:
        """What the build in a folder was asked for; None where it does not say."""
        file = folder / ORDER_FILE
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def keep(self, folder: Path) -> None:
        write_text(folder / ORDER_FILE, json.dumps(asdict(self)) + "\n")

    def require_same(self, folder: Path) -> None:
        """Raises JdmError unless this is what the build in a folder was asked for."""
        kept = Order.of(folder)
        if kept == self:
            return
        here = kept._words() if kept else dict.fromkeys(self._words(), "unknown")
        differ = [f"{key} {here[key]}, not {asked}" for key, asked in self._words().items() if here[key] != asked]
        raise JdmError(
            f"{folder} holds another build: {'; '.join(differ)}",
            hint="give the options and pictures that it was begun with, or delete it to build anew",
        )

    def _words(self) -> dict[str, str]:
        return {
            "pictures": self.pictures or "rendered",
            "budget": str(float(self.budget)),
            "seed": str(self.seed),
            "digest of pictures and captions": self.content[:8] or "none",
        }
