"""
A rule of your own
==================

An aggregation rule is a class with two things: how many vectors it needs, and one
method that makes one vector of n. Here one is invented, found wrong twice by
``check_rule``, mended, drawn, and measured against rules of the literature.
"""

# %%
# An idea, and a first attempt
# ----------------------------
# At most f of n vectors lie. So leave out the f that are farthest from the mean, and
# answer the mean of the rest:

import matplotlib.pyplot as plt
import numpy as np
import torch

import varangian as vg
from varangian.testing import ContractError, check_rule


class Near(vg.General):
    """The mean of the n - f vectors nearest to the mean of all."""

    @property
    def needs(self):  # how many vectors: the formula, for messages, and the number
        return "2f + 1", 2 * self.f + 1

    def combine(self, x, previous):  # x is [n, d], the answer [d]
        distances = (x - x.mean(0)).norm(dim=1)
        nearest = distances.argsort()[: len(x) - self.f]
        return x[nearest].mean(0)


print(Near(f=1)(torch.tensor([[1.0], [1.2], [0.9], [50.0]])))

# %%
# That looks right. ``self.f`` is how many may lie, and comes from whoever uses the
# rule. But what of NaN? Of vectors that are equally far? Of the order in which they
# come? A rule has a contract, and ``check_rule`` tries all of it, on small vectors
# and hostile ones. What fails comes with the smallest example that it found:

try:
    check_rule(Near)
except ContractError as error:
    print(error)

# %%
# Three faults, of three kinds. One NaN makes the mean NaN and so all distances. Where
# more than f vectors are not finite, no answer can be right, and the rule must say so
# instead of answering NaN. And of two vectors that are equally far, ``argsort`` takes
# whichever comes first: then the answer depends on who is asked first.
#
# Two of three mended
# -------------------
# The centre should not be for liars to move. The median of each coordinate is such a
# centre, rules are functions that a rule may call, and the median does the refusing:


class NearMedian(Near):
    """The mean of the n - f vectors nearest to the median."""

    def combine(self, x, previous):
        distances = (x - vg.Median(self.f)(x)).norm(dim=1)
        nearest = distances.argsort()[: len(x) - self.f]
        return x[nearest].mean(0)


try:
    check_rule(NearMedian)
except ContractError as error:
    print(error)

# %%
# What is NaN is sorted last now, and left out. What remains are ties. Take all that
# are no farther than the (n − f)-th nearest: then no order is asked for. And
# distances are better computed in float64, where no square of a float32 overflows.


class Nearest(Near):
    """The mean of all no farther from the median than the (n - f)-th nearest."""

    def combine(self, x, previous):
        center = vg.Median(self.f)(x).double()
        distances = (x.double() - center).norm(dim=1).nan_to_num(nan=torch.inf)
        limit = distances.sort().values[len(x) - self.f - 1]
        return x[distances <= limit].double().mean(0).to(x.dtype)


report = check_rule(Nearest)
print(report)

# %%
# What it does
# ------------
# Eight honest vectors in the plane, and three others that would like to be followed:

random = np.random.default_rng(1)
honest = random.normal(size=(8, 2)) @ np.array([[0.5, 0.2], [0.0, 0.4]])
cloud = np.concatenate([honest, [[2.6, 2.1], [2.8, 1.9], [2.4, 2.3]]])

figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
axes.scatter(*honest.T, color="0.6", label="honest")
axes.scatter(*cloud[8:].T, color="#d55e00", marker="x", label="Byzantine")
answers = {
    "honest mean": (honest.mean(0), "k", "+"),
    "mean": (cloud.mean(0), "#d55e00", "s"),
    "median": (vg.Median(3)(cloud), "#009e73", "^"),
    "ours": (Nearest(3)(cloud), "#0072b2", "D"),
}
for name, (point, colour, marker) in answers.items():
    axes.scatter(*point, color=colour, marker=marker, s=60, label=name, zorder=3)
axes.set_title("Three far vectors move the mean,\nand hardly our rule")
axes.set_aspect("equal")
axes.legend(fontsize="small")
plt.show()

# %%
# How it does in training
# -----------------------
# In a file of yours the class itself stands wherever the name of a rule does,
# ``rule=Nearest``. In a session or a notebook it gets a name first. Four rules, four
# attacks:

vg.RULES["nearest"] = Nearest
rules = {
    "mean": "average",
    "median": "median",
    "Multi-Krum": "multi-krum",
    "ours": "nearest",
}
attacks = ["gaussian", "little", "empire", "sign-flip"]
table = np.zeros((len(rules), len(attacks)))
for i, rule in enumerate(rules.values()):
    for k, attack in enumerate(attacks):
        setting = vg.Experiment(
            workers=11,
            byzantine=3,
            rule=rule,
            attack=attack,
            batch_size=4,
            steps=80,
            evaluate_every=0,  # at the end alone
        )
        table[i, k] = 100 * vg.run(setting).final_accuracy
del vg.RULES["nearest"]  # the name was for these runs

figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
axes.imshow(table, cmap="cividis", vmin=0, vmax=100, aspect="auto")
axes.set_xticks(range(len(attacks)), attacks)
axes.set_yticks(range(len(rules)), rules)
for (i, k), value in np.ndenumerate(table):
    shade = "white" if value < 50 else "black"
    axes.text(k, i, f"{value:.0f}", ha="center", va="center", color=shade)
axes.set_title("Accuracy in %, by rule and attack:\nours holds under all four")
plt.show()

# %%
# Digits, eleven workers of whom three attack, momentum at the workers; one seed, so
# that two or three points mean nothing. That the mean does so well under all but
# noise is a lesson too: these attacks are made for rules that choose. An attacker who
# faces a mean needs no finesse.
#
# On the command line
# -------------------
# In a file ``my_rule.py`` the class is known to every command, grids included, and
# nothing is registered:
#
# .. code-block:: sh
#
#    varangian check my_rule.py:Nearest
#    varangian run --rule my_rule.py:Nearest --attack little --workers 11 --byzantine 3
#    varangian score my_rule.py:Nearest   # all about it, on one page, in minutes
#
# What that page says is in :doc:`reading a score card <08_score_card>`. A rule that
# looks at distances only, or at ranks in each coordinate, has a shorter and faster
# form; options, chance and memory have their places; and mixings, attacks and
# transforms are as short: :doc:`/docs/howto/extending`.
