"""
Your own model and data
=======================

Any ``torch.nn.Module``, and any tensors. Here a small network learns three spirals in
the plane, where one can see what each training has learned: once by the mean and once
by a robust rule, while three of eleven workers push the other way.
"""

# %%
# Data
# ----
# A pair (x, y) of tensors or arrays will do: rows, images or tokens, with a label
# each. This makes spirals:

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

import varangian as vg


def spirals(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (count,), generator=generator)
    radius = 2 * torch.rand(count, generator=generator)
    turn = 2 * torch.pi * (label / 3 + 0.3 * radius)
    turn += 0.25 * torch.randn(count, generator=generator)
    return torch.stack([radius * turn.cos(), radius * turn.sin()], 1), label


x, y = spirals(2000)
print(x.shape, y.shape, y.bincount())

# %%
# Nothing has to be split by hand: a fifth is set aside for the test, the same each
# time. ``validation=0.1`` sets another tenth aside, to choose by without looking at
# the test; the rest is dealt to the workers.
#
# A model
# -------
# A module as you have it. It is handed over and stays as it is: the run trains a
# copy.

hidden = [nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
net = nn.Sequential(*hidden, nn.Linear(64, 3))


# %%
# Here it begins with parameters of a seed, so that this page is the same each time:


def seeded():
    torch.manual_seed(0)
    for layer in net:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return net


# %%
# Three trainings
# ---------------
# The attack *empire* sends the mean of the honest gradients, turned round, four times
# as long. Three such workers of eleven turn the mean of all round too: (8 − 3 · 4) /
# 11 is less than zero.


def train(rule, attack=None):
    experiment = vg.Experiment(
        workers=11,
        byzantine=3 if attack else 0,
        attack=attack,
        rule=rule,
        batch_size=8,
        steps=300,
        evaluate_every=50,
        validation=0.1,
        metrics="worst-class",  # measured in each evaluation, beside accuracy
    )
    return vg.run(experiment, model=seeded(), dataset=(x, y))


attack = "empire(factor=4.0)"
trained = {
    "mean, no attack": train("average"),
    "mean, attacked": train("average", attack),
    "median, attacked": train("median", attack),
}
for name, result in trained.items():
    chosen = result.chosen  # the evaluation that was best on validation data
    print(
        f"{name:17} chosen at step {chosen.step:3}: test {chosen.accuracy:6.1%},",
        f"its worst class {chosen.metrics['worst-class']:6.1%}",
    )

# %%
# What they learned
# -----------------
# ``result.model()`` is the trained module after the last step, an ordinary one: call
# it, save its ``state_dict``, go on with it.

side = torch.linspace(-2.2, 2.2, 200)
grid = torch.cartesian_prod(side, side)
figure, panels = plt.subplots(1, 3, figsize=(7.2, 2.9), layout="constrained")
for axes, (name, result) in zip(panels, trained.items(), strict=True):
    with torch.no_grad():
        regions = result.model()(grid).argmax(1).reshape(200, 200).T.numpy()
    axes.imshow(
        regions,
        origin="lower",
        extent=(-2.2, 2.2, -2.2, 2.2),
        cmap="Pastel2",
        vmin=0,
        vmax=7,
    )
    for label, colour in enumerate(("#00734f", "#c04000", "#44529a")):
        points = x[y == label][:150]
        axes.scatter(*points.T.numpy(), s=4, color=colour)
    axes.set(title=name, xticks=[], yticks=[])
figure.suptitle("Shaded: what each model answers. Dots: three spirals")
plt.show()

# %%
# Keeping a run
# -------------
# With ``out=`` a run is kept in a folder of its own: settings, all measures of every
# step, the model. The same call again answers from there, and goes on where it was
# interrupted.

setting = {"workers": 11, "byzantine": 3, "rule": "median", "attack": attack}
experiment = vg.Experiment(**setting, batch_size=8, steps=50)
with tempfile.TemporaryDirectory() as folder:
    first = vg.run(experiment, out=folder, model=net, dataset=(x, y))
    again = vg.run(experiment, out=folder, model=net, dataset=(x, y))
    print(again.from_disk, again.final_accuracy == first.final_accuracy)
    print(*sorted(path.name for path in Path(again.folder).iterdir()), sep="\n")

# %%
# By name
# -------
# What was handed over has no name that another process could look up. For the command
# line, grids and sweeps put model and data into files, as functions or classes, and
# name them:
#
# .. code-block:: sh
#
#    varangian run --model my_net.py:Net --dataset spirals.py:spirals --rule median
#
# A function that makes data answers what was handed over above, (x, y), and takes
# options in parentheses, ``spirals.py:spirals(count=2000)``. Losses, token models,
# batch normalisation and dropout, frozen layers: :doc:`/docs/howto/models`. Tables,
# images, test sets of your own, metrics: :doc:`/docs/howto/data`. Who of the workers
# holds which data: :doc:`the tutorial on that <07_heterogeneous_data>`.
