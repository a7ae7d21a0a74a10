"""Half of a hundred labelled images of a shift choose the backoff, as `--ood` does: against `auto` alone.

`python -m benchmarks.ablations.labels_of_a_shift` prints the table of docs/research.md from
results/backoffs.json: rows of a source are the ten backoffs, the fine-tuned and the zero-shot model.
"""

import json
from pathlib import Path

import numpy as np

from benchmarks.pair_results import unpacked

FILE = Path(__file__).parents[1] / "results" / "backoffs.json"
DRAWS = 300


def rows():
    for pair, told in json.loads(FILE.read_text(encoding="utf-8")).items():
        bits = {name: unpacked(each) for name, each in told["correct"].items()}
        among = [*told["safe"], 10]
        own, shifts = among[0], [name for name in bits if name != "test"]
        rng = np.random.default_rng(7)

        def drawn(found):
            return found.mean(), found[rng.integers(len(found), size=len(found))].mean()

        for shift in shifts:
            count = bits[shift].shape[1]
            taken = min(100, count)
            found = {"half": [], "other": [], "target": []}
            for _ in range(DRAWS):
                at = rng.permutation(count)[:taken]
                choose, judge = at[: taken // 2], at[taken // 2 :]
                best = among[int(np.argmax(bits[shift][among][:, choose].mean(axis=1)))]
                change = {name: each[best].astype(float) - each[own] for name, each in bits.items()}
                found["half"].append(drawn(change[shift][judge]))
                rest = [drawn(change[name]) for name in shifts if name != shift]
                found["other"].append(tuple(np.mean(rest, axis=0)))
                found["target"].append(drawn(change["test"]))
            helped = bits[shift][10].mean() > bits[shift][11].mean()
            yield pair, shift, helped, {name: np.array(each) for name, each in found.items()}


def mean_of(which, some):
    """Mean over pairs, their shifts averaged; pairs are drawn again, and one draw of each."""
    by_pair = {}
    for pair, _, _, found in some:
        by_pair.setdefault(pair, []).append(found[which])
    measured = np.mean([np.mean([each[:, 0].mean() for each in ours]) for ours in by_pair.values()])
    rng, pairs, means = np.random.default_rng(3), list(by_pair.values()), []
    for _ in range(2000):
        chosen = [pairs[at] for at in rng.integers(len(pairs), size=len(pairs))]
        means.append(np.mean([np.mean([each[rng.integers(DRAWS), 1] for each in o]) for o in chosen]))
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{100 * measured:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


if __name__ == "__main__":
    every = list(rows())
    for name, some in {
        "all": every,
        "hurt": [each for each in every if not each[2]],
        "helped": [each for each in every if each[2]],
    }.items():
        print(name, len(some), *(mean_of(which, some) for which in ("half", "other", "target")))
