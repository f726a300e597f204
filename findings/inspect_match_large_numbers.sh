#!/bin/bash
# inspect-ai 0.3.285, `match(numeric=True)`: numbers are equal when their first five digits are, so that wrong answers
# of six digits and more count as correct. With `location="exact"`, too. Nothing is said.
#
# The target and the number that is found in the answer are both written with `format(number, ".5g")`, and the strings
# are compared. 123456 and 123457 become "1.2346e+05", 1000000 and 1000049 "1e+06". From 100000 on, sums and products
# with wrong last digits pass, the more of them the longer the numbers are, and accuracy is that of the leading
# digits. The answer in the log is "1.2346e+05" as well. (Docstring and guide tell what is stripped "before numbers
# are normalized and compared", and that "exact" requires an output equal to the target, but of no tolerance. Pull
# request 3916 mended 25 for 5, and kept the five digits; no public issue about them was found.) What helps: `pattern`
# with a group for the number, which compares text.
#
# Products of two numbers and answers that are off by one, all of them wrong: the share that counts as correct, by the
# number of digits; "exact" is `match` with that location. Right answers are correct by all three.
#
# Seen: "5 digits: match 0.00, exact 0.00, pattern 0.00", "6 digits: match 0.95, exact 0.95, pattern 0.00", "8 digits:
# match 0.99, exact 0.99, pattern 0.00".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q inspect-ai==0.3.285
cd "$folder"
venv/bin/python - 2> log <<'PYTHON' || { status=$?; tail -5 log; exit $status; }
import asyncio
import random
from importlib.metadata import version

from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Target, match, pattern
from inspect_ai.solver import TaskState

print(f"inspect-ai {version('inspect-ai')}")
PRODUCTS = 200
SCORERS = {
    "match": (match(numeric=True), "The answer is {}."),
    "exact": (match("exact", numeric=True), "{}"),
    "pattern": (pattern(r"(\d+)\D*$"), "The answer is {}."),
}


async def correct(name, answer, target):
    scorer, text = SCORERS[name]
    output = ModelOutput.from_content("model", text.format(answer))
    state = TaskState("model", sample_id=1, epoch=1, input="", messages=[], output=output)
    return (await scorer(state, Target(str(target)))).value == "C"


async def share(name, products, off):
    return sum([await correct(name, product + off, product) for product in products]) / len(products)


async def main():
    rng = random.Random(0)
    same = True
    for digits in (5, 6, 8):
        products = []
        while len(products) < PRODUCTS:
            product = rng.randrange(10, 10_000) * rng.randrange(10, 10_000)
            if len(str(product)) == len(str(product + 1)) == digits:
                products.append(product)
        wrong = {name: await share(name, products, off=1) for name in SCORERS}
        right = [await share(name, products, off=0) for name in SCORERS]
        print(f"{digits} digits: " + ", ".join(f"{name} {found:.2f}" for name, found in wrong.items()))
        same = same and right == [1.0] * len(SCORERS) and wrong["pattern"] == 0.0
        same = same and all(wrong[name] == 0.0 if digits == 5 else wrong[name] > 0.8 for name in ("match", "exact"))
    return same


raise SystemExit(0 if asyncio.run(main()) else 1)
PYTHON
