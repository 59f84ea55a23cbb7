"""
Your first robust run
=====================

You know how to train a network in PyTorch. In fifteen minutes you will have seen
three liars among eleven workers ruin a training, a robust rule save it, cleverer ones
get past that rule, and momentum at the workers take most of that back. And you will
have it in a loop of your own.

You need Varangian, ``pip install .`` in a clone of it, and nothing else: the data come
with it, and a laptop will do. Paste the pieces into a Python session or a notebook one
after the other, or run the whole script.
"""

# %%
# What goes wrong
# ---------------
# In data-parallel training each *worker* computes a gradient on its own batch, and a
# *server* takes the mean and makes the step. (With DistributedDataParallel,
# all-reduce is that server.) Here are eleven workers who agree on a gradient of about
# (1, 1, 1), but for the noise of their batches:

import matplotlib.pyplot as plt
import torch

import varangian as vg

torch.manual_seed(0)
gradients = 1 + 0.3 * torch.randn(11, 3)  # one row a worker
print(gradients.mean(0))

# %%
# Now three of them send something else. A broken card, a bug, or somebody with an
# aim: it does not matter, and the field calls all of them *Byzantine*. They are f = 3
# of n = 11.

gradients[-3:] = -100.0
print("mean   ", gradients.mean(0))
print("median ", vg.Median(f=3)(gradients))

# %%
# The mean goes wherever they like. The median of each coordinate stays among the
# honest, as long as f is less than half of n. Such a function of n vectors is called
# an aggregation *rule*, and ``vg.Median`` is one of two dozen here:
# ``print(list(vg.RULES))``. The number f is for you to say: how many may lie, at
# most. The median is the same whatever f is, but it knows by f when to refuse: here
# there are too few vectors for three liars.

try:
    vg.Median(f=3)(gradients[:6])
except ValueError as error:
    print(error)

# %%
# A training that fails
# ---------------------
# An ``Experiment`` is a whole training, with all that can be set: here a small
# network on handwritten digits, eleven workers, each with a batch of four images a
# step. Everything is simulated in this process. First nobody lies, then three workers
# send noise, and loud it is: normal numbers, standard deviation 200.
#
# ``workers`` counts the liars too. ``byzantine`` is f: so many attack, and the rule is
# told so. What is not set has its default, such as a learning rate of 0.1, momentum of
# 0.9, and gradients clipped to a norm of 2.


def train(rule, attack=None, momentum_at="server", seed=1):
    experiment = vg.Experiment(
        workers=11,
        byzantine=0 if attack is None else 3,
        attack=attack,
        rule=rule,
        momentum_at=momentum_at,
        batch_size=4,
        steps=100,
        seed=seed,
    )
    return vg.run(experiment)


runs = {
    "mean, nobody lies": train("average"),
    "mean, noise": train("average", "gaussian"),
    "median, noise": train("median", "gaussian"),
}
for name, result in runs.items():
    print(f"{name:18} {result.final_accuracy:6.1%} of the test images right at the end")

# %%
# Ten classes: 10 % is guessing. With the mean, three liars of eleven undo the
# training; with the median, the rest of the program unchanged, they hardly matter.

figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
styles = {
    "mean, nobody lies": ("0.5", "--"),
    "mean, noise": ("#d55e00", "-"),
    "median, noise": ("#0072b2", "-"),
}
for name, (colour, line) in styles.items():
    curve = runs[name].evaluations
    axes.plot(
        [e.step for e in curve],
        [100 * e.accuracy for e in curve],
        line,
        color=colour,
        label=name,
    )

axes.set(xlabel="step", ylabel="accuracy on test images, %", ylim=(0, 100))
axes.set_title(
    "Three of eleven workers send noise:\nthe mean guesses, the median learns"
)
axes.legend(loc="center right")
plt.show()

# %%
# A liar who knows the rule
# -------------------------
# Noise is easily seen. The attack called *little* is not: its workers know all that
# the honest ones send, and send the honest mean less a little of the honest spread:
# 1.5 standard deviations of each coordinate. Each such vector looks like that of a
# worker with an unlucky batch, all lie on the same side, and the median goes there
# step after step. It lives on the *noise* of the honest gradients: the wider they are
# spread, the further it can go and still look honest.
#
# Momentum averages noise away. Usually it is the server's, behind the rule, where the
# attacker has already had its way. The idea that this library is built around moves
# it to the workers, before the rule: each sends its momentum instead of its gradient.
# That costs nothing, and the rule sees vectors that agree. We compare the two with
# three seeds each.

places, seeds = ("server", "worker"), (1, 2, 3)
little = {
    place: [train("median", "little", momentum_at=place, seed=seed) for seed in seeds]
    for place in places
}
for place in places:
    found = [result.final_accuracy for result in little[place]]
    print(f"momentum at the {place}: ", *(f"{accuracy:6.1%}" for accuracy in found))

# %%
figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
for place, colour in zip(places, ("#d55e00", "#0072b2"), strict=True):
    for result, label in zip(
        little[place], (f"momentum at the {place}", None, None), strict=True
    ):
        curve = result.evaluations
        axes.plot(
            [e.step for e in curve],
            [100 * e.accuracy for e in curve],
            color=colour,
            label=label,
        )

axes.set(xlabel="step", ylabel="accuracy on test images, %", ylim=(0, 100))
axes.set_title(
    "The median under the attack little: momentum\nat the workers takes much of it back"
)
axes.legend(loc="lower right")
plt.show()

# sphinx_gallery_thumbnail_number = 2

# %%
# Each line is a seed. It is not a cure for everything: where batches are large there
# is little noise and little to gain, as ``varangian demo`` :doc:`shows </docs/demo>`,
# and where workers hold different data it can even harm: :doc:`What it protects from,
# and what not </docs/explanation/limits>`.
#
# Who lied?
# ---------
# A simulation knows who attacked; a server has to guess. Every step tells something of
# every worker, so let us ask a rule that chooses among whole vectors. Multi-Krum
# averages the six (n - f - 2) that have the closest neighbours; the others sit out,
# honest ones too. The last three workers are those that attack:

print(train("multi-krum", "gaussian", momentum_at="worker").workers())

# %%
# * *rejected*: in how many steps it had under a tenth of an equal share of the
#   aggregate; *share* is its mean share, and 1 an equal one. *not finite*: in how many
#   it sent NaN or infinity. *skipped* steps had no answer.
# * *suspicion*, from 0 to 1: how much further from the aggregate than usual, or how
#   turned away. 0.5 is twice as far. It is a mean over steps; the most suspicious
#   stands first.
#
# Noise is far away, so this was easy. Under *little* the same line gives the three
# liars a suspicion of 0.20 and the first honest worker 0.17, and one of the liars has
# more than an equal share. Suspicion finds the crude, and not the careful.
#
# In a loop of your own
# ---------------------
# ``vg.Algorithm`` is all of it without simulator: what stands at the workers, the
# rule, and what stands at the server. ``send`` is the workers' half of a step and
# ``aggregate`` the server's. Here is a linear regression whose loop is plain PyTorch,
# with eight honest workers and three who send the opposite, ten times as long.
# ``init`` wants to know how many workers' momentum is kept here, which is that of the
# honest, and the number of parameters:

honest, f = 8, 3
truth = torch.tensor([1.0, -2.0, 3.0])
x = torch.randn(honest, 500, 3)  # every worker has data of its own
y = x @ truth + 0.5 * torch.randn(honest, 500)

algorithm = vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.Median(f))
weights = torch.zeros(3, requires_grad=True)
state = algorithm.init(honest, weights.numel())
for _ in range(200):
    drawn = torch.randint(500, (4,))
    losses = [
        ((x[i, drawn] @ weights - y[i, drawn]) ** 2).mean() for i in range(honest)
    ]
    gradients = torch.stack([torch.autograd.grad(loss, weights)[0] for loss in losses])
    sent, state = algorithm.send(gradients, state)
    lies = -10 * sent.mean(0).expand(f, -1)
    update, state = algorithm.aggregate(torch.cat([sent, lies]), state)
    with torch.no_grad():
        weights -= 0.005 * update

print("found", weights.detach(), "true", truth)

# %%
# With ``vg.Average()`` in place of the median the weights end beyond 100 million.
#
# * Another attack: ``lies = vg.Little()(sent, f)``; ``print(list(vg.ATTACKS))`` has
#   all names. A weak attack proves nothing: try several.
# * The learning rate: this momentum adds up, to 1 / (1 - 0.9) = 10 gradients in the
#   long run, so take a tenth of the rate of plain SGD.
# * An ``nn.Module``, with ``params = list(model.parameters())`` and two functions of
#   ``torch.nn.utils``: a worker's row is
#   ``parameters_to_vector(torch.autograd.grad(loss, params))``, and the step is
#   ``vector_to_parameters(parameters_to_vector(params) - rate * update, params)``.
#
# What to take along
# ------------------
# * **n** vectors come in a step, and up to **f** of them may be anything. f is your
#   assumption: with more than f liars nothing is promised.
# * A **rule** makes one vector of n. ``vg.Median(f)``, ``vg.TrimmedMean(f)`` and
#   ``vg.MultiKrum(f)`` are among the simplest, not all among the strongest;
#   ``varangian advise --workers 11 --byzantine 3`` ranks what your n and f allow by
#   the accuracy that the worst attack measured leaves.
# * **Momentum** belongs before the rule: ``Algorithm(worker=(vg.Momentum(0.9),),
#   rule=...)``.
# * The server is trusted, and small lies stay possible: a rule bounds the damage, and
#   makes it seldom zero.
#
# From here: your real training under :doc:`DistributedDataParallel <05_ddp_bad_rank>`
# or :doc:`Flower <06_flower>`, :doc:`your own model and data
# <03_own_model_and_data>`, or :doc:`a rule of your own <02_own_rule>`.
