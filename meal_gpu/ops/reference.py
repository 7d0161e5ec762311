"""Plain torch and umap-learn: the specification, the oracle of the tests and the fair baseline."""

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F

from meal_gpu.grid import Grid
from meal_gpu.ops import Committee, PatchClasses, Patches
from meal_gpu.ops.umap_learn import umap_fit
from meal_gpu.ops.upsampling import interpolation

__all__ = [
    "confusion", "gather_patches", "kmeans_plusplus", "name", "patch_classes", "patch_committee",
    "patch_entropy", "umap_fit",
]  # fmt: skip

name = "reference"

# Upsampled logits alive at a time. Larger bands leave the CPU's caches and run slower.
BAND_BYTES = 4 << 20
# Distances alive at a time, of all points to all that are labelled
PAIR_BYTES = 32 << 20
# Weights that are added in a row
SCANNED = 1024


def _upsampled_bands(
    logits: torch.Tensor, size: tuple[int, int], padded: tuple[int, int], align_corners: bool
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (image, first row, [C, rows, W]): one image at a time, so that no result depends on the batch."""
    values = logits if logits.dtype == torch.float64 else logits.float()
    _, channels, h, w = values.shape
    height, width = size
    y0, y1, wy = interpolation(h, padded[0], height, align_corners, values.device)
    x0, x1, wx = interpolation(w, padded[1], width, align_corners, values.device)
    wy, wx = wy.to(values), wx.to(values)
    rows = max(1, BAND_BYTES // (channels * width * values.element_size()))
    for image, value in enumerate(values):
        for top in range(0, height, rows):
            band = slice(top, top + rows)
            upper, lower = value[:, y0[band]], value[:, y1[band]]
            tall = torch.lerp(upper, lower, wy[band, None])
            yield image, top, torch.lerp(tall[..., x0], tall[..., x1], wx)


def patch_entropy(
    logits: torch.Tensor,
    grid: Grid,
    padded: tuple[int, int],
    align_corners: bool,
    *,
    measure: str = "entropy",
    temperature: float = 1.0,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    height, width = grid.height, grid.width
    sums = logits.new_zeros((len(logits), height, grid.columns), dtype=torch.float64)
    for image, top, band in _upsampled_bands(logits, (height, width), padded, align_corners):
        uncertainty = _uncertainty(band / temperature if temperature != 1 else band, measure)
        if valid is not None:
            uncertainty = uncertainty.where(valid[top : top + len(uncertainty)] != 0, 0.0)
        sums[image, top : top + len(uncertainty)] = _row_sums(uncertainty, grid)
    totals = column_sums(sums, grid)
    # Nothing to see is nothing to learn: 0 where a patch has no valid pixel
    means = totals / patch_pixels(grid, valid, logits.device).clamp(min=1)
    return means if logits.dtype == torch.float64 else means.float()


def patch_classes(
    logits: torch.Tensor,
    grid: Grid,
    padded: tuple[int, int],
    align_corners: bool,
    *,
    temperature: float = 1.0,
    valid: torch.Tensor | None = None,
) -> PatchClasses:
    (images, classes), device = logits.shape[:2], logits.device
    size, patches = (grid.height, grid.width), grid.patches_per_image
    mask = torch.ones(size, dtype=torch.bool, device=device) if valid is None else valid != 0
    patch = patch_of_pixels(grid, device)
    totals = logits.new_zeros((images, patches, classes), dtype=torch.float64)
    counts = logits.new_zeros((images, patches * classes), dtype=torch.int32)
    for image in range(images):
        sums = totals.new_zeros((classes, grid.height, grid.columns))
        for _, top, band in _upsampled_bands(logits[image : image + 1], size, padded, align_corners):
            rows = slice(top, top + band.shape[1])
            # On a CPU several times as fast as torch's own softmax along this dimension
            p = F.log_softmax(band / temperature if temperature != 1 else band, dim=0).exp()
            sums[:, rows] = _row_sums(p.where(mask[rows], 0.0), grid)
            # Of the logits: softmax makes equals of what float32 can still tell apart
            bins = patch[rows] * classes + band.max(dim=0).indices
            counts[image].scatter_add_(0, bins.flatten(), mask[rows].int().flatten())
        totals[image] = column_sums(sums, grid).T
    means = totals / patch_pixels(grid, valid, device).clamp(min=1)[:, None]
    return PatchClasses(
        means if logits.dtype == torch.float64 else means.float(), counts.view(images, patches, classes)
    )


def patch_committee(
    logits: torch.Tensor,
    grid: Grid,
    padded: tuple[int, int],
    align_corners: bool,
    *,
    temperature: float = 1.0,
    valid: torch.Tensor | None = None,
) -> Committee:
    members, images, classes = logits.shape[:3]
    height, width = grid.height, grid.width
    sums = logits.new_zeros((2, images, height, grid.columns), dtype=torch.float64)
    # All members' bands of one image together, as if each had classes of its own
    together = logits.transpose(0, 1).flatten(1, 2)
    for image, top, bands in _upsampled_bands(together, (height, width), padded, align_corners):
        scaled = bands.view(members, classes, *bands.shape[1:])
        scaled = scaled / temperature if temperature != 1 else scaled
        log_p = F.log_softmax(scaled, dim=1)
        total = torch.special.entr(log_p.exp().mean(dim=0)).sum(dim=0)
        both = torch.stack([total, _entropy(log_p, dim=1).mean(dim=0)])
        rows = slice(top, top + both.shape[1])
        if valid is not None:
            both = both.where(valid[rows] != 0, 0.0)
        sums[:, image, rows] = _row_sums(both, grid)
    pixels = patch_pixels(grid, valid, logits.device).clamp(min=1)
    means = [column_sums(each, grid) / pixels for each in sums]
    return Committee(*(each if logits.dtype == torch.float64 else each.float() for each in means))


def _uncertainty(logits: torch.Tensor, measure: str) -> torch.Tensor:
    """[C, rows, W] -> [rows, W]: 0 where the model is certain."""
    if measure == "entropy":
        return _entropy(F.log_softmax(logits, dim=0), dim=0)
    p = F.softmax(logits, dim=0)
    if measure == "margin" and len(p) > 1:
        first, second = p.topk(2, dim=0).values
        return torch.rsub(first - second, 1)
    return torch.rsub(p.amax(dim=0), 1)


def _entropy(log_p: torch.Tensor, dim: int) -> torch.Tensor:
    """Overwrites log p. p = 0 has entropy 0, also where log p is -inf."""
    return -(log_p.exp() * log_p.clamp_(min=torch.finfo(log_p.dtype).min)).sum(dim=dim)


def _row_sums(pixels: torch.Tensor, grid: Grid) -> torch.Tensor:
    """[..., W] -> [..., columns of patches] float64."""
    filled = F.pad(pixels, (0, grid.columns * grid.patch_width - grid.width))
    cut = filled.view(*filled.shape[:-1], grid.columns, grid.patch_width)
    return cut.sum(dim=-1, dtype=torch.float64)


def column_sums(sums: torch.Tensor, grid: Grid) -> torch.Tensor:
    """[B, H, columns] -> [B, P]."""
    filled = F.pad(sums, (0, 0, 0, grid.rows * grid.patch_height - grid.height))
    return filled.view(len(sums), grid.rows, grid.patch_height, grid.columns).sum(dim=2).flatten(1)


def patch_of_pixels(grid: Grid, device: torch.device) -> torch.Tensor:
    """[H, W] int64: the patch that each pixel of an image lies in, counted within the image."""
    row = torch.arange(grid.height, device=device) // grid.patch_height
    column = torch.arange(grid.width, device=device) // grid.patch_width
    return row[:, None] * grid.columns + column


def patch_pixels(grid: Grid, valid: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """[P] float64: how many pixels of each patch count."""
    if valid is None:
        return _patch_areas(grid, device)
    return column_sums(_row_sums((valid != 0).double(), grid)[None], grid)[0]


@cache
def _patch_areas(grid: Grid, device: torch.device) -> torch.Tensor:
    height, width = (
        (length - full * torch.arange(parts)).clamp_(max=full)
        for parts, full, length in (
            (grid.rows, grid.patch_height, grid.height),
            (grid.columns, grid.patch_width, grid.width),
        )
    )
    areas = torch.outer(height, width).flatten()
    return areas.to(device, torch.float64)


def gather_patches(
    images: torch.Tensor,
    labels: torch.Tensor | None,
    patches: torch.Tensor,
    grid: Grid,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    void: int,
    *,
    padded: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> Patches:
    at, inside = pixels_of_patches(
        patches.to(images.device), grid, padded or (grid.patch_height, grid.patch_width)
    )
    pixels = normalise(images[at], mean, std) * inside[:, None]
    pixels = pixels.to(dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return Patches(pixels, None if labels is None else labels[at].masked_fill(~inside, void))


def pixels_of_patches(
    patches: torch.Tensor, grid: Grid, size: tuple[int, int]
) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Where the pixels of patches [M], filled up to `size`, lie in [N, H, W, ...], and which are theirs.

    The first is an index whose parts have the shape [M, h, w] together, the second bool [M, h, w].
    """
    height, width = size
    image = patches // grid.patches_per_image
    row = patches % grid.patches_per_image // grid.columns
    column = patches % grid.columns
    down = torch.arange(height, device=patches.device)
    across = torch.arange(width, device=patches.device)
    y = (row * grid.patch_height)[:, None] + down
    x = (column * grid.patch_width)[:, None] + across
    inside_y = (down < grid.patch_height) & (y < grid.height)
    inside_x = (across < grid.patch_width) & (x < grid.width)
    at = (
        image[:, None, None],
        y.clamp(max=grid.height - 1)[:, :, None],
        x.clamp(max=grid.width - 1)[:, None, :],
    )
    return at, inside_y[:, :, None] & inside_x[:, None, :]


def normalise(
    images: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W], (x/255 - mean)/std, in channels-last memory."""
    scaled = images.permute(0, 3, 1, 2).float().div_(255)
    channel = scaled.new_tensor((mean, std)).view(2, 3, 1, 1)
    return (scaled - channel[0]) / channel[1]


def kmeans_plusplus(
    points: torch.Tensor, uniforms: torch.Tensor, chosen: torch.Tensor | None
) -> torch.Tensor:
    values = points.double()
    uniforms = uniforms.to(values.device)
    free = torch.ones(len(values), dtype=torch.bool, device=values.device)
    nearest = torch.full((len(values),), torch.inf, dtype=torch.float64, device=values.device)
    if chosen is not None and len(chosen):
        nearest = _squared_distances(values, _nearest(values, chosen.double()))
    picks = torch.empty(len(uniforms), dtype=torch.int64, device=values.device)
    for place, draws in enumerate(uniforms):
        # All weights equal: before any centre is known, and once every free point coincides with one
        weights = nearest.where(free, 0.0)
        degenerate = ~((weights.sum() > 0) & weights.sum().isfinite())
        cumulative = prefix_sums(torch.where(degenerate, free.double(), weights))
        rows = torch.searchsorted(cumulative, draws * cumulative[-1], right=True)
        # u·total may round up to the total itself: stay on the last row that has weight
        rows.clamp_(max=torch.searchsorted(cumulative, cumulative[-1]))
        updated = torch.stack([torch.minimum(nearest, _squared_distances(values, c)) for c in values[rows]])
        best = updated.where(free, 0.0).sum(dim=1).argmin(dim=0, keepdim=True)
        nearest, row = updated[best][0], rows[best]
        free[row] = False
        picks[place] = row[0]
    return picks


def prefix_sums(weights: torch.Tensor) -> torch.Tensor:
    """[M] >= 0 -> [M], the sum up to each, the same in every run; what is drawn by them has a weight."""
    return weights.cumsum(0) if weights.device.type == "cpu" else sums_in_rows(weights)


def sums_in_rows(weights: torch.Tensor) -> torch.Tensor:
    """`prefix_sums` for a GPU, where torch adds one row in an order that changes, and several in a fixed one.

    It adds in a tree, where a weight of 0 might raise the sum by a last digit.
    """
    rows = F.pad(weights, (0, -len(weights) % SCANNED + SCANNED)).view(-1, SCANNED).cumsum(1)
    totals = rows[:, -1]
    before = F.pad(torch.stack([totals, totals]).cumsum(1)[0], (1, -1))
    sums = (before[:, None] + rows).flatten()[: len(weights)]
    return sums.where(weights > 0, 0.0).cummax(0).values


def _squared_distances(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """[M, d], [d] or [M, d] -> [M]."""
    return (points - centres).square().sum(dim=1)


def _nearest(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """[M, d], [L, d] float64 -> [M, d], the centre nearest to each point."""
    parts = torch.split(points, max(1, PAIR_BYTES // (8 * len(centres))))
    return torch.cat([
        centres[torch.cdist(part, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)]
        for part in parts
    ])  # fmt: skip


def confusion(
    logits: torch.Tensor, labels: torch.Tensor, padded: tuple[int, int], align_corners: bool, void: int
) -> torch.Tensor:
    classes = logits.shape[1]
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=logits.device)
    size = (labels.shape[1], labels.shape[2])
    for image, top, band in _upsampled_bands(logits, size, padded, align_corners):
        truth = labels[image, top : top + band.shape[1]].long()
        known = truth != void
        counts += torch.bincount((truth * classes + band.max(dim=0).indices)[known], minlength=len(counts))
    return counts.view(classes, classes)
