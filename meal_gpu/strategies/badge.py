"""BADGE for patches: K-Means++ seeding over gradients of the last layer, which are never written out.

The gradient of the loss for a pixel's predicted class is (p - onehot(argmax p)) ⊗ h, with the last layer's
input h. A patch is described by the mean of the first factor and by the encoder's features for the second, so
that |g - g'|² = |a|²|f|² + |a'|²|f'|² - 2 (a·a')(f·f') takes C + D numbers a patch and not C·D. Opposite
errors of a patch's pixels cancel in a: where two classes are confused both ways alike, it counts as 0.
"""

import torch

from meal_gpu.ops import PatchClasses
from meal_gpu.strategies.base import Pool, Selection, Strategy
from meal_gpu.strategies.geometry import d2_sampling


def errors(classes: PatchClasses) -> torch.Tensor:
    """[P, C] float32: mean over the pixels of p - onehot(argmax p)."""
    counts = classes.counts.float()
    return classes.probabilities.float() - counts / counts.sum(dim=1, keepdim=True).clamp(min=1)


def select(pool: Pool) -> Selection:
    patches = pool.unlabelled
    a, f = errors(pool.classes())[patches], pool.features(patches)
    norms = a.square().sum(dim=1) * f.square().sum(dim=1)
    order = norms.argsort(descending=True, stable=True)
    a, f, norms = a[order], f[order], norms[order]

    def distances(row: torch.Tensor) -> torch.Tensor:
        products = (a @ a[row][0]) * (f @ f[row][0])
        return (norms + norms[row] - 2 * products).clamp(min=0)

    rows = d2_sampling(distances, norms, pool.uniforms("kmeans_plusplus", pool.n))
    return Selection(patches[order[rows]])


STRATEGY = Strategy(
    name="badge",
    summary="K-Means++ seeding over factorised gradients of the last layer",
    source="after Ash et al. 2020, Algorithm 1; the first draw in proportion to the squared norm",
    choice=select,
    needs=("classes",),
)
