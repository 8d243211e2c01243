"""The score learnt from examples, by scikit-learn's logistic regression, and how well it tells apart examples that it has not seen.

The ordinary documents may have wanted ones among them, as in GPT-3's and DCLM's classifiers (arXiv 2005.14165, appendix A; 2406.11794, section 4.4): these draw the scores of
all wanted ones down alike, and leave their order. The measures are then lower than the truth, for a wanted one among the ordinary counts as a mistake.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fox.data.quality.examples import Examples
from fox.data.quality.score import BUCKET_BITS, PERCENT, Score

HELD_OUT = 0.1
"""The share of the examples, chosen by their hashes, on which the score is measured and from which it does not learn."""

_FREEDOM = 0.1
"""C of the regression: the examples are few beside the weights, and some ordinary ones are wanted, so that it is to learn what many have in common. Of
0.001, 0.01, 0.1 and 1, hidden books were best found with 0.01, and hidden short articles and made-up stories with 0.1."""

_FEWEST_WITH = 3
"""Examples that have a feature which counts: what fewer have tells which document it is, and not of what kind. It matters where the documents
that are scored are those that stood for the ordinary."""

_MOST_STEPS = 300


class Measures(NamedTuple):
    """On the examples that were held out."""

    auc: float
    """How often a wanted one is scored above an ordinary one: 0.5 is chance. The area under the ROC curve."""
    accuracy: float
    """Of both kinds alike: the mean of the shares that are on the right side of 0."""
    examples: int


def learn(good: Examples, ordinary: Examples) -> tuple[Score, Measures]:
    """The score that tells `good` from `ordinary`. The same examples and libraries give the same, whatever the number of threads."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score
    from threadpoolctl import threadpool_limits

    rows, is_good = matrix_of(good, ordinary)
    unseen = _held_out(np.concatenate([good.hashes, ordinary.hashes]), is_good)
    model = LogisticRegression(C=_FREEDOM, class_weight="balanced", max_iter=_MOST_STEPS)
    seen = rows[~unseen]
    columns = np.flatnonzero(np.bincount(seen.indices, minlength=2**BUCKET_BITS) >= _FEWEST_WITH)
    with threadpool_limits(1):  # sums by many threads end in other bits
        model.fit(seen[:, columns], is_good[~unseen])
        scores = model.decision_function(rows[unseen][:, columns])
    weights = np.zeros(2**BUCKET_BITS)
    weights[columns] = model.coef_[0]
    about = {"good": len(good.hashes), "ordinary": len(ordinary.hashes)}
    score = Score(weights, float(model.intercept_[0]), about)
    truth = is_good[unseen]
    accuracy = balanced_accuracy_score(truth, scores > 0)
    return score, Measures(round(float(roc_auc_score(truth, scores)), 4), round(float(accuracy), 4), int(unseen.sum()))


def matrix_of(*kinds: Examples) -> tuple[Any, np.ndarray]:
    """A sparse row for each example of all kinds (percent of each feature), and whether it is of the first kind."""
    from scipy.sparse import csr_matrix

    lengths = np.concatenate([kind.lengths for kind in kinds])
    features = np.concatenate([kind.features for kind in kinds]).astype(np.int32)
    values = np.repeat((PERCENT / np.maximum(lengths, 1)).astype(np.float32), lengths)
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    rows = csr_matrix((values, features, starts), shape=(lengths.size, 2**BUCKET_BITS))
    rows.sum_duplicates()
    is_first = np.zeros(lengths.size, dtype=np.bool_)
    is_first[: len(kinds[0].hashes)] = True
    return rows, is_first


def _held_out(hashes: np.ndarray, is_good: np.ndarray) -> np.ndarray:
    """Of each kind a tenth: those whose hashes come first when the last bits of these are taken for a number."""
    unseen = np.zeros(hashes.size, dtype=np.bool_)
    for kind in (is_good, ~is_good):
        places = np.flatnonzero(kind)
        last = hashes[places] & np.uint64(2**32 - 1)  # the first bits may have drawn the examples
        unseen[places[np.argsort(last, kind="stable")[: max(1, round(HELD_OUT * places.size))]]] = True
    return unseen
