"""What to know of a list of choices before trusting what is learnt from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jdmctl.evaluation.bootstrap import Estimate
from jdmctl.feedback.pairs import Pair, groups, repeated


@dataclass(frozen=True)
class DataCheck:
    """Counts, and what looks wrong without making the data unusable."""

    num_pairs: int
    num_prompts: int  # pictures that are compared without a prompt count as if they had one of their own
    num_ties: int
    a_preferred: Estimate  # share among pairs that are no ties: 0.5 if the side does not matter
    warnings: tuple[str, ...]


def check_pairs(pairs: Sequence[Pair]) -> DataCheck:
    """Repeated and contradictory choices, and whether one side is preferred whatever it shows."""
    decided = [pair.label for pair in pairs if pair.label != 0.5]
    share = wilson(sum(decided), len(decided))
    warnings = []
    same, other = repeated(pairs)
    if same:
        warnings.append(f"{len(same)} pairs come again with the same choice: {_lines(same)}; each counts")
    if other:
        warnings.append(f"{len(other)} pairs come again with another choice: {_lines(other)}; they pull both ways")
    if decided and not share.low <= 0.5 <= share.high:
        side = "a" if share.value > 0.5 else "b"
        warnings.append(f"picture {side} is preferred too often for chance ({share}): were the sides shuffled?")
    return DataCheck(len(pairs), len(set(groups(pairs))), len(pairs) - len(decided), share, tuple(warnings))


def wilson(successes: float, n: int, z: float = 1.96) -> Estimate:
    """A share with its 95 % score interval (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    if n == 0:
        return Estimate(0.5, 0.0, 1.0, 0)
    share = successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), n)


def _lines(couples: Sequence[tuple[Pair, Pair]]) -> str:
    shown = ", ".join(f"lines {first.line} and {later.line}" for first, later in couples[:3])
    return shown + (" ..." if len(couples) > 3 else "")
