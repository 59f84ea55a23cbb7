"""
A grid and its report
=====================

One run shows little: another seed, another attack, and the order of two rules turns
round. A *grid* is a small file of settings; those that are lists multiply. Here 36
trainings are run in one command, and their report answers what one asks: which rule
stands under its worst attack, and where should momentum be?
"""

# %%
# The file
# --------
# Every setting of ``varangian run --help`` is one of a grid, spelt with underscores;
# what is not named has its default. In a project you write ``grid.toml`` with an
# editor. This script works in a folder that it removes at its end.

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import varangian as vg

folder = tempfile.TemporaryDirectory()
here = Path(folder.name)
grid = here / "grid.toml"
grid.write_text("""
rule = ["average", "median", "multi-krum"]
attack = ["gaussian", "little", "empire"]
momentum_at = ["server", "worker"]
seeds = "1-2"

workers = 11
byzantine = 3
batch_size = 4
steps = 60
""")

# %%
# The sweep
# ---------
# ``varangian sweep grid.toml --out study``, on as many cores as there are;
# ``--dry-run`` first says how many runs that is, which, and how long it should take.
# Ctrl-C ends it whenever you like, and the same command goes on from there.


def varangian(*words):
    """What a terminal does with this command."""
    command = [sys.executable, "-m", "varangian", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=here, env=environment, check=True, capture_output=True, text=True
    )


done = varangian("sweep", "grid.toml", "--out", "study")
print(done.stdout)

# %%
# The report
# ----------
# ``varangian report study``, or in Python:

page = vg.report(here / "study")
print(page.name)
print(*sorted(path.name for path in page.parent.iterdir()), sep="\n")

# %%
# ``report.html`` is one file that needs no network: open it in a browser. It shows
# the grid as its settings make it: every cell with its seeds, the worst case of every
# rule, curves, and which settings all runs have in common. Its figures lie in
# ``figures`` too, as PNG and as PDF for a paper. This one is the heart of it:


def show(path, title):
    """A finished picture, as a figure of its own size."""
    picture = plt.imread(path)
    height, width = picture.shape[:2]
    figure = plt.figure(figsize=(7, 7 * height / width + 0.4))
    axes = figure.add_axes((0, 0, 1, 1 - 0.4 / figure.get_figheight()))
    axes.imshow(picture)
    axes.axis("off")
    axes.set_title(title)
    plt.show()


show(
    page.parent / "figures" / "heat-final.png",
    "Final accuracy: rules by attacks, and the worst",
)

# %%
# The tables behind it
# --------------------
# Every figure stands on a table. ``cells.csv`` has a row a cell, mean and deviation
# over the seeds; ``worst.csv`` the worst attack of each rule; ``runs.csv`` a row a
# run, ``curves.csv`` a row an evaluation, for your own analysis.

with (page.parent / "worst.csv").open(newline="") as file:
    rows = [row for row in csv.DictReader(file) if row["measure"] == "final"]
print("rule         momentum at   worst, %   under")
for row in sorted(rows, key=lambda row: float(row["worst"])):
    print(
        f"{row['rule']:12} {row['momentum_at']:11} {row['worst']:>10}   {row['attack']}"
    )

# %%
# How to read it. The attacker chooses the attack after it has seen your rule, so the
# *worst* column is what you get, and not the mean over attacks. Two seeds are few: a
# difference smaller than the deviation in ``cells.csv`` says nothing. And what the
# report calls final is the last evaluation, where many papers show the greatest of
# all, which is chosen by looking at the test set; the report has both.
#
# Again, and more
# ---------------
# Two seeds too few? Write ``seeds = "1-5"`` and run the same command into the same
# folder: what is there is not run again.
#
# Exclusions, cases, many machines, and choosing learning rates without looking at the
# test set: :doc:`/docs/howto/grids`.

folder.cleanup()
