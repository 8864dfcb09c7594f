"""Batches of one size each, from samples of several: which sample comes when, as a function of where a run stands."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from jdmctl.training.draws import order


@dataclass(frozen=True)
class Buckets:
    """Every update is of one bucket, and each bucket has its turn as often as it has samples.

    A bucket's samples form an endless stream, epoch after epoch in a new order, cut into batches; so every sample is
    shown as often as any other, also where a bucket is no multiple of the batch or smaller than it. In epoch e those
    batches of a bucket with n samples are due that become complete between e n and (e + 1) n samples, and they
    are shuffled among those of the other buckets. Nothing is remembered: a resumed run, or any of several processes,
    computes the same.
    """

    members: tuple[tuple[int, ...], ...]  # bucket -> its samples, at least one
    latent_shapes: tuple[tuple[int, int, int], ...]  # bucket -> C, h, w

    def index(self, seed: int, phase: str, number: int, batch_size: int) -> int:
        """Which sample a phase's global sample is."""
        update, place = divmod(number, batch_size)
        bucket, turn = self.turn(seed, phase, update, batch_size)
        members = self.members[bucket]
        epoch, at = divmod(turn * batch_size + place, len(members))
        return members[order(seed, f"{phase} bucket {bucket}", epoch, len(members))[at]]

    def latent_shape(self, seed: int, phase: str, number: int, batch_size: int) -> tuple[int, int, int]:
        """C, h, w of the update that a phase's global sample belongs to."""
        return self.latent_shapes[self.turn(seed, phase, number // batch_size, batch_size)[0]]

    def turn(self, seed: int, phase: str, update: int, batch_size: int) -> tuple[int, int]:
        """The bucket of an update, and which of that bucket's batches it is."""

        def due(epoch: int) -> list[int]:  # by the epoch's start, from each bucket
            return [epoch * len(members) // batch_size for members in self.members]

        size = sum(map(len, self.members))
        enough = (update + len(self.members) + 1) * batch_size // size + 2  # epochs
        epoch = bisect.bisect_right(range(enough), update, key=lambda number: sum(due(number))) - 1
        before, after = due(epoch), due(epoch + 1)
        turns = [(bucket, turn) for bucket in range(len(before)) for turn in range(before[bucket], after[bucket])]
        return turns[order(seed, f"{phase} buckets", epoch, len(turns))[update - sum(before)]]
