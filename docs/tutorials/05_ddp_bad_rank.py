"""
DDP with one bad rank
=====================

Your training runs under DistributedDataParallel. All-reduce takes the mean of the
ranks' gradients, so one rank with a broken card or a bad shard reaches every replica.
Here four ranks train on this machine, one goes bad, and three lines more keep the
training going and name the rank.
"""

# %%
# The training script
# -------------------
# An ordinary script for ``torchrun``. What is added stands below *this is all*:
# ``protect`` puts a rule in the place of the mean, and momentum moves from the
# optimizer to the workers. The loop stays as it is: after ``backward()`` every rank's
# ``.grad`` holds the robust update.
#
# From step 20 on rank 3 does the worst of what a bug could do: it multiplies its loss
# by −5. Nothing crashes, nothing is NaN.
#
# .. literalinclude:: /docs/tutorials/ranks.py
#    :lines: 8-
#
# :download:`Download ranks.py </docs/tutorials/ranks.py>` and keep it beside this
# script.
#
# Four ranks
# ----------
# In a terminal it is ``torchrun --standalone --nproc-per-node 4 ranks.py
# curves.json``. The same from here:

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

script = Path("ranks.py" if Path("ranks.py").exists() else "docs/tutorials/ranks.py")
with tempfile.TemporaryDirectory() as folder:
    curves = Path(folder) / "curves.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    done = subprocess.run(
        [*torchrun, "--standalone", "--nproc-per-node", "4", str(script), str(curves)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    accuracy = json.loads(curves.read_text(encoding="utf-8"))
print(done.stdout.replace(platform.node(), "here"))  # the name of the machine

# %%
# That is the protection's report, from rank 0. *share* is what a rank's vectors
# weighed in the update, 1 being an equal share: the trimmed mean leaves out whatever
# is greatest or least in a coordinate, and that is rank 3 far more often than not.
# *suspicion* near 1 means far off, or turned round, step after step. ``report()`` can
# be asked at any time, and ``report().as_dict()`` goes into your log.

figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
for name, colour in (("plain", "#d55e00"), ("protected", "#0072b2")):
    axes.plot([100 * value for value in accuracy[name]], color=colour, label=name)
axes.axvline(20, color="0.6", linewidth=1)
axes.annotate("rank 3 goes bad", (20, 3), (5, 0), textcoords="offset points")
axes.set(xlabel="step", ylabel="accuracy on test images, %", ylim=(0, 100))
axes.set_title("One bad rank of four undoes plain DDP,\nthe protected training goes on")
axes.legend(loc="center right")
plt.show()

print(*(f"{name} {values[-1]:.0%}" for name, values in accuracy.items()), sep="\n")

# %%
# What it costs, what it needs
# ----------------------------
# * **Ranks**: with at most f bad ones, 2f + 1 ranks for the trimmed mean and the
#   median, 2f + 3 for Multi-Krum. A rule that cannot do with your number is refused
#   before training.
# * **Traffic**: that of a ring all-reduce for rules of coordinates, a few numbers
#   more for rules of distances.
# * **Who is trusted**: rank 0, which broadcasts parameters, and what every rank says
#   of its piece of the aggregate, unless ``replicated=True``. It protects from bad
#   *gradients*, not from a process with an aim.
#
# Checkpoints, gradient scaling, accumulation, FSDP2, a step that is refused and what
# to do then: :doc:`/docs/howto/engines`. Nodes that join over a network: :doc:`Flower
# <06_flower>`.
