"""The committed figures: what a message may cost, in counts that do not depend on how busy a machine is.

`scripts/figures.json` gives for each count, and each load, the most that is allowed. A script that counts
judges by it with a `Judge`, which also says what to do about a figure that no longer fits.
"""

import json

from tools import ROOT

FILE = ROOT / "scripts" / "figures.json"
# Below this share of what is allowed, a cost could grow again without being noticed.
LOOSE = 0.7
# Loads whose limit is lower than this cannot be tightened much.
SMALL = 0.2


class Judge:
    """Compares the figures of one count with the committed ones."""

    def __init__(self, name):
        self.name = name
        self.allowed = json.loads(FILE.read_text())[name]
        self.worse = []
        self.better = []

    def most(self, load):
        """What `load` may cost."""
        return self.allowed[load]

    def judge(self, load, figure):
        """Compares what `load` costs with what it may cost."""
        most = self.most(load)
        if figure > most:
            self.worse.append(f"{load}: {figure:g}, at most {most:g} allowed")
        elif figure < LOOSE * most and most > SMALL:
            self.better.append(f"{load}: {figure:g}, far less than the {most:g} allowed")

    def conclude(self, script, complaints=()):
        """Prints the complaints, what to do about figures that do not fit, and the outcome; returns the exit
        status."""
        place = f'"{self.name}" in {FILE.relative_to(ROOT)}'
        for line in [*complaints, *self.worse]:
            print(line)
        if self.worse:
            print(f"Find what costs more. If it is worth that, raise {place} and say why in the commit.")
        for line in self.better:
            print(line)
        if self.better:
            print(f"Lower {place}, so that the gain is kept.")
        is_good = not complaints and not self.worse
        print(f"{script}: " + ("as expected" if is_good else "not as expected"))
        return 0 if is_good else 1
