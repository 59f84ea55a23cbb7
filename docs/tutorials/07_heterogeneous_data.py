"""
Workers with different data
===========================

Robust rules tell liars from honest workers by distance. Where every worker holds a like
share of the data that works. Where one hospital, phone or shard has what the others
lack, honest vectors are far apart, and a rule takes honest workers for liars. This
tutorial deals the data unevenly, looks at it, sees a good rule fail *without any
attack*, and mends it with one word.
"""

# %%
# Who holds what
# --------------
# ``partition`` says how training data are dealt to the workers.
# ``dirichlet(alpha=0.1)`` is the usual way to have them unequal: the smaller alpha,
# the fewer classes a worker sees. ``vg.heterogeneity`` deals exactly as a run would.

import matplotlib.pyplot as plt
import numpy as np

import varangian as vg

partitions = ["iid", "dirichlet(alpha=0.1)"]
held = {
    partition: vg.heterogeneity(
        vg.Experiment(workers=11, byzantine=0, partition=partition)
    )
    for partition in partitions
}

figure, panels = plt.subplots(1, 2, figsize=(5, 3.4), sharey=True, layout="constrained")
for axes, (partition, found) in zip(panels, held.items(), strict=True):
    axes.imshow(found.counts, cmap="cividis_r")
    axes.set(title=partition, xlabel="class", xticks=range(10))
panels[0].set(ylabel="worker", yticks=range(11))
figure.suptitle("Images of each class at each worker: alike and unlike")
plt.show()

# %%
# Dark is many. On the left all workers draw from all images. On the right most
# classes lie with one or two workers, and some hold many times what others do. The
# same call measures what this does to gradients: how far those of the workers lie
# from their mean, in squares, over the square of the mean's length.

for partition, found in held.items():
    sizes = found.sizes
    print(
        f"{partition:20} {sizes.min():4} to {sizes.max():4} images a worker,",
        f"spread of gradients over mean {found.points[0].ratio:.2f}",
    )

# %%
# With equal data nothing but the noise of batches separates honest workers, and here,
# on all of their data, there is none. With unequal data their gradients are further
# from each other than from zero.
#
# A good rule fails
# -----------------
# The median, nobody attacking, and then three attacks by two of eleven workers.
# *Mimic* sends what one honest worker sends, over and over: every vector is a true
# one, and the rule comes to over-represent that worker.

attacks = [None, "mimic", "little", "sign-flip"]


def accuracies(partition, pre=(), momentum_at="worker"):
    """Under each attack, the accuracy at the end in %."""
    found = []
    for attack in attacks:
        experiment = vg.Experiment(
            workers=11,
            byzantine=2 if attack else 0,
            attack=attack,
            rule="median",
            pre=pre,
            momentum_at=momentum_at,
            partition=partition,
            batch_size=16,
            steps=100,
            evaluate_every=0,  # at the end alone
        )
        found.append(100 * vg.run(experiment).final_accuracy)
    return found


cases = {
    "equal data, median": accuracies("iid"),
    "unequal, median": accuracies("dirichlet(alpha=0.1)"),
    "unequal, NNM + median": accuracies("dirichlet(alpha=0.1)", pre="nnm"),
}
print(f"{'':22}", *(f"{attack or 'no attack':>10}" for attack in attacks))
for name, row in cases.items():
    print(f"{name:22}", *(f"{value:10.1f}" for value in row))

# %%
# The second row is the one to remember: on unequal data the median loses half of the
# accuracy *with nobody attacking*. The coordinate-wise middle of workers who each
# know other classes is the opinion of nobody. Rules that are proved robust are proved
# so for vectors that are close to each other, and these are not.
#
# Mixing, one word
# ----------------
# *Nearest-neighbour mixing*, the third row, replaces each vector by the mean of its n
# − f nearest before the rule sees them. Honest vectors come close to each other; a
# lie gets mixed with honest vectors too. ``pre="nnm"`` is all, on the command line
# ``--pre nnm``, in an algorithm of your own ``pre=(vg.NearestNeighborMixing(f),)``.

figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
places, width = np.arange(len(attacks)), 0.26
colours = ("0.65", "#d55e00", "#0072b2")
for k, (name, row) in enumerate(cases.items()):
    axes.bar(places + (k - 1) * width, row, width, color=colours[k], label=name)
axes.set_xticks(places, [attack or "no attack" for attack in attacks])
axes.set(ylabel="accuracy on test images, %", ylim=(0, 135), yticks=range(0, 101, 20))
axes.legend(loc="upper center", ncols=2, fontsize="small")
axes.set_title("Unequal data defeat the median,\nmixing brings it back")
plt.show()

# sphinx_gallery_thumbnail_number = 2

# %%
# And momentum?
# -------------
# With equal data momentum at the workers helps wherever gradients are noisy. With
# unequal data that is not sure: it averages away the noise of batches, and leaves
# what sets workers apart. So compare, on your split, with your rule:

for pre in ((), "nnm"):
    for place in ("server", "worker"):
        row = accuracies("dirichlet(alpha=0.1)", pre=pre, momentum_at=place)
        print(
            f"{'NNM + median' if pre else 'median':13} momentum at the {place}:",
            *(f"{value:6.1f}" for value in row),
        )

# %%
# One seed and one split; differences of a few points are chance. What ``varangian
# heterogeneity`` makes of this question with four rules, four partitions and three
# seeds is in :doc:`/results/heterogeneity/README`. In short:
#
# * Look first, with ``varangian data --partition ...``, or ``vg.heterogeneity`` with
#   your own data.
# * Put a mixing before the rule where data differ.
# * Do not expect a rule to tell a worker with rare data from a liar: to it they are
#   the same. :doc:`/docs/howto/quarantine` shows what such a worker pays.
