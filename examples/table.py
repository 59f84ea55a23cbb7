"""A table of scikit-learn (which this needs: pip install scikit-learn), learned while three of eleven workers attack.

    varangian run --dataset table.py:cancer --model linear --rule median --attack little --workers 11 \
        --validation 0.1 --metrics worst-class

or, from Python, what the lines below do. Rows are floats [N, p] and labels integers from 0: no data set of pictures is
needed, and models that take any shape of examples ("linear", "fully-connected", your own) learn them.
"""

from dataclasses import replace

from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import varangian as vg


def cancer(test: float = 0.25) -> vg.Dataset:
    """569 rows of 30 measurements each, benign or not; scaled by what the training rows say."""
    rows, labels = load_breast_cancer(return_X_y=True)
    x, x_test, y, y_test = train_test_split(rows, labels, test_size=test, stratify=labels, random_state=1)
    scaler = StandardScaler().fit(x)
    return vg.dataset((scaler.transform(x), y), (scaler.transform(x_test), y_test), name="breast cancer")


def diabetes() -> vg.Dataset:
    """442 rows of 10 measurements, and a number to predict: of floats as labels. --loss mse, --metrics r2."""
    rows, progress = load_diabetes(return_X_y=True)
    return vg.dataset((rows * 21, (progress - 152) / 77), name="diabetes")


if __name__ == "__main__":
    settings = vg.Experiment(
        model="linear", workers=11, byzantine=3, attack="inf", batch_size=8, steps=200, validation=0.1,
        metrics="worst-class",
    )  # fmt: skip
    for rule in ("average", "median", "multi-krum"):
        result = vg.run(replace(settings, rule=rule), dataset=cancer())
        assert result.chosen is not None
        print(f"{rule:10}  test accuracy {result.chosen.accuracy:.1%}, of the worse class", end=" ")
        print(f"{result.chosen.metrics['worst-class']:.1%}")
