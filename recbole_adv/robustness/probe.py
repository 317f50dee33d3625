"""How well a class can be read out of vectors: probes on a fifth of the users that they never saw.

For each seed users are divided 80 : 20, stratified by class; the vectors are standardised by the 80; a
logistic regression and a multilayer perceptron (scikit-learn's) learn the class. Two classes: the area
under the ROC curve, turned round where it is below .5. More: micro-F1, which is accuracy. Controls: the
majority class, and the same probes after the classes of the 80 were permuted among their users: what is
above that is in the vectors.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PROBES = ("logistic", "mlp")


@dataclass(frozen=True)
class Probed:
    """One probe of one seed: its score, after permuting, and the majority's."""

    probe: str
    seed: int
    score: float
    permuted: float
    majority: float


def measure_of(labels: np.ndarray) -> str:
    """``AUC`` of two classes, ``micro-F1`` of more."""
    return "AUC" if len(np.unique(labels)) == 2 else "micro-F1"


def probe(vectors: np.ndarray, labels: np.ndarray, seeds: Sequence[int]) -> list[Probed]:
    """vectors: [u, D]; labels: [u], each class of five users or more."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import train_test_split

    found = []
    classes, number = np.unique(labels, return_inverse=True)
    n_test = max(round(0.2 * len(labels)), len(classes))
    for seed in seeds:
        split = train_test_split(
            vectors, number, test_size=n_test, stratify=number, random_state=seed
        )
        learn, test, of_learn, of_test = split
        permuted = np.random.default_rng(seed).permutation(of_learn)
        most = np.bincount(of_learn).argmax()
        majority = 0.5 if len(classes) == 2 else float((of_test == most).mean())
        for name in PROBES:
            scores: list[float] = []
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                for target in (of_learn, permuted):
                    model = _model(name, seed).fit(learn, target)
                    scores.append(_score(model, test, of_test, len(classes)))
            found.append(Probed(name, seed, scores[0], scores[1], majority))
    return found


def _model(name: str, seed: int):
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if name == "logistic":
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    perceptron = MLPClassifier((64,), alpha=1.0, max_iter=200, random_state=seed)
    return make_pipeline(StandardScaler(), perceptron)


def _score(model, vectors: np.ndarray, labels: np.ndarray, n_classes: int) -> float:
    from sklearn.metrics import f1_score, roc_auc_score

    if n_classes > 2:
        return float(f1_score(labels, model.predict(vectors), average="micro"))
    area = roc_auc_score(labels, model.predict_proba(vectors)[:, 1])
    return float(max(area, 1 - area))
