"""MEAL's second stage as a query strategy of scikit-activeml (Herde et al. 2021)."""

from typing import Any

import numpy as np
import torch

from meal_gpu.errors import InputError, UnavailableError
from meal_gpu.ops.public import kmeans_plusplus
from meal_gpu.trust.seeding import seeding

try:
    from skactiveml.base import SingleAnnotatorPoolQueryStrategy
    from skactiveml.utils import MISSING_LABEL
except ImportError as error:
    raise UnavailableError(
        f"scikit-activeml cannot be imported ({error}); python -m pip install 'meal-gpu[skactiveml]'"
    ) from error


class MealSampling(SingleAnnotatorPoolQueryStrategy):  # type: ignore[misc]
    """K-Means++ seeding among the most uncertain samples (MEAL, Algorithm 1).

    Args:
        n_candidates: N_I, how many samples of highest uncertainty K-Means++ chooses from; at least as many
            as are queried.
        missing_label: marks the unlabelled in `y`.
        random_state: None, an int or a `RandomState`, as everywhere in scikit-activeml.
    """

    def __init__(
        self, n_candidates: int = 200, missing_label: Any = MISSING_LABEL, random_state: Any = None
    ) -> None:
        super().__init__(missing_label=missing_label, random_state=random_state)
        self.n_candidates = n_candidates

    def query(
        self,
        X: Any,  # noqa: N803  scikit-learn's name
        y: Any,
        uncertainties: Any = None,
        candidates: Any = None,
        batch_size: int = 1,
        return_utilities: bool = False,
    ) -> Any:
        """Choose `batch_size` samples.

        Args:
            X: [n_samples, d] embedding of all samples, say by `meal_gpu.Manifold.transform`.
            y: [n_samples] labels, `missing_label` where there are none.
            uncertainties: [n_samples], or [n_candidates] where the candidates are given by their own
                embedding; higher is more uncertain. None: all are alike, and no candidate is left out.
            candidates: None for all unlabelled; indices into X; or an embedding [n_candidates, d].
            batch_size: how many; lowered, with a warning, where there are fewer.
            return_utilities: also return the probabilities of every draw.

        Returns:
            [batch_size] int64 indices into X, or into an embedding given as `candidates`, in order of choice;
            with `return_utilities` also [batch_size, n], D² sampling's probabilities in each draw: 0 where
            others are more uncertain, NaN for what is no candidate or chosen already.

        Raises:
            InputError: uncertainties of another length, or not finite; n_candidates below 1.
        """
        X, y, candidates, batch_size, return_utilities = self._validate_data(  # noqa: N806
            X, y, candidates, batch_size, return_utilities, reset=True
        )
        points, indices = self._transform_candidates(candidates, X, y)
        total = len(points) if indices is None else len(X)
        indices = np.arange(len(points)) if indices is None else indices
        if self.n_candidates < 1:
            raise InputError(f"n_candidates must be at least 1, got {self.n_candidates}")
        top = np.arange(len(points))
        if uncertainties is not None:
            given = np.asarray(uncertainties, dtype=float)
            if given.shape != (total,) or not np.isfinite(given[indices]).all():
                raise InputError(f"uncertainties must be [{total}] and finite, got {list(given.shape)}")
            order = np.argsort(-given[indices], kind="stable")
            top = order[: max(self.n_candidates, batch_size)]
        embedding = torch.from_numpy(np.asarray(points[top], dtype=float))
        seed = int(self.random_state_.randint(2**31 - 1))
        drawn = kmeans_plusplus(embedding, batch_size, seed=seed).numpy()
        query = indices[top[drawn]]
        if not return_utilities:
            return query
        utilities = np.full((batch_size, total), np.nan)
        utilities[:, indices] = 0.0
        utilities[:, indices[top]] = seeding(embedding, torch.from_numpy(drawn)).chances.numpy()
        for draw in range(1, batch_size):
            utilities[draw, query[:draw]] = np.nan
        return query, utilities
