"""f-distill beside FastGen's: the same weights, ratios and gradients, and what a step costs in the same process.

    python examples/fastgen/compare.py PATH_TO_FASTGEN [--results docs/results/fastgen.json]

Imports FastGen's own functions from a checkout (git clone https://github.com/NVlabs/FastGen). checks.py says what is
compared, ours.py and theirs.py how the same small networks are handed to both.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from checks import (
    GAN_WEIGHT,
    KEYS,
    SEEDS,
    Found,
    explained,
    gradients,
    its_reverse_kl,
    moving_average,
    ratios,
    step_time,
    times,
    weights,
)
from rich.console import Console
from rich.table import Table
from theirs import FastGen, load

from jdmctl.cli.evaluate import keep
from jdmctl.evaluation.results import Row, setup

COMMAND = "python examples/fastgen/compare.py FastGen --results docs/results/fastgen.json"


def all_of(fastgen: FastGen, pairs: int) -> Iterator[Found]:
    yield from weights(fastgen)
    yield from ratios(fastgen)
    for name in KEYS:
        for case in ("", " in float32", " with GAN"):
            yield from gradients(fastgen, name, case)
        yield from explained(fastgen, name)
    yield from gradients(fastgen, "js", " with GAN of two heads")
    yield from moving_average(fastgen)
    yield from times(fastgen)
    for name in ("js", "reverse-kl"):
        for gan_weight in (GAN_WEIGHT, 0.0):
            yield from step_time(fastgen, name, gan_weight, pairs)


def shown(found: list[Found]) -> Table:
    table = Table("metric", "divergence", "value", "from", "to", "n")
    for name, metric, value in sorted(found, key=lambda entry: entry[1]):
        numbers = (f"{number:.3g}" for number in (value.value, value.low, value.high))
        table.add_row(metric, name, *numbers, str(value.n))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fastgen", type=Path, metavar="PATH_TO_FASTGEN")
    parser.add_argument("--results", type=Path, help="file of rows, docs/results/NAME.json")
    parser.add_argument("--pairs", type=int, default=40, help="of timed steps")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    fastgen, console = load(arguments.fastgen), Console(width=120, highlight=False)
    console.print(f"FastGen {fastgen.commit}, its defaults {fastgen.defaults}")
    console.print(f"stand-ins while it was imported: {', '.join(fastgen.stand_ins) or 'none'}")
    console.print(its_reverse_kl(fastgen))
    found = list(all_of(fastgen, arguments.pairs))
    console.print(shown(found))
    versions = setup(f"FastGen {fastgen.commit}")
    rows = []
    for name, metric, value in found:
        seeds = SEEDS if metric.startswith(("ratio", "h ", "gradient")) else [0]
        numbers = value.value, value.low, value.high
        rows.append(Row("tiny network", "", name, 1, metric, *numbers, seeds, value.n, COMMAND, versions))
    keep(rows, arguments.results)


if __name__ == "__main__":
    main()
