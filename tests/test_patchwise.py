"""Patches decoded within their images, against the images decoded whole."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import calibrated

from meal_gpu.grid import Grid
from meal_gpu.inference import autocast
from meal_gpu.models import ARCHITECTURES, Builder, Segmenter
from meal_gpu.patchwise import Patchwise, patch_decoder, upsampled


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Segmenter:
    return calibrated(Builder(request.param, 5, "none"), 0)


@pytest.fixture(scope="module")
def smp() -> Segmenter:
    return calibrated(Builder("smp", 5, "none"), 0)


def every_patch(grid: Grid) -> torch.Tensor:
    return torch.arange(grid.patches_per_image)


def pictures(count: int, grid: Grid) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, grid.height, grid.width, generator=generator)


def cut(full: torch.Tensor, grid: Grid, patches: torch.Tensor) -> torch.Tensor:
    """Of each [B, C, H, W] its patch, the last pixels repeated: [B, C, ph, pw]."""
    height, width = grid.patch_height, grid.patch_width
    spare = (0, grid.columns * width - grid.width, 0, grid.rows * height - grid.height)
    filled = F.pad(full, spare, mode="replicate")
    tops, lefts = patches // grid.columns * height, patches % grid.columns * width
    places = zip(filled, tops.tolist(), lefts.tolist(), strict=True)
    return torch.stack([image[:, y : y + height, x : x + width] for image, y, x in places])


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    spread = float(expected.std())
    assert spread > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 * spread)


@pytest.mark.parametrize(
    "grid",
    [
        Grid(4, 4, 360, 480),  # CamVid's
        Grid(1, 1, 64, 96),
        Grid(3, 5, 100, 203),  # the last patches are smaller
        Grid(2, 2, 20, 30),  # a map of 2×2 cells
        Grid(1, 2, 16, 16),  # one cell
    ],
)
@torch.inference_mode()
def test_the_logits_of_a_patch_are_those_of_the_whole_image(model: Segmenter, grid: Grid) -> None:
    patches = every_patch(grid)
    encoded = model.encode(pictures(len(patches), grid))
    whole = upsampled(model, model.decode(encoded), (grid.height, grid.width))
    found = Patchwise(model, grid, torch.device("cpu"))(encoded, patches)
    expected = cut(whole, grid, patches)
    assert found.dtype == torch.float32
    close(found, expected)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(16, 150), st.integers(16, 150), st.integers(0, 10**6)
)
@torch.inference_mode()
def test_whatever_the_grid(
    smp: Segmenter, rows: int, columns: int, height: int, width: int, choice: int
) -> None:
    if (rows - 1) * -(-height // rows) >= height or (columns - 1) * -(-width // columns) >= width:
        return
    grid = Grid(rows, columns, height, width)
    patches = torch.tensor([choice % grid.patches_per_image])
    encoded = smp.encode(pictures(1, grid))
    whole = upsampled(smp, smp.decode(encoded), (height, width))
    found = Patchwise(smp, grid, torch.device("cpu"))(encoded, patches)
    close(found, cut(whole, grid, patches))


def test_the_gradients_are_those_of_the_loss_of_the_whole_image(model: Segmenter) -> None:
    grid = Grid(4, 4, 120, 160)
    patches = torch.tensor([0, 6, 11, 14])
    images = pictures(len(patches), grid)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(5, (len(patches), grid.height, grid.width), generator=generator)
    decode = Patchwise(model, grid, torch.device("cpu"))

    def whole() -> torch.Tensor:
        return cut(upsampled(model, model(images).logits, (grid.height, grid.width)), grid, patches)

    def windows() -> torch.Tensor:
        return decode(model.encode(images), patches)

    truth = cut(labels[:, None], grid, patches)[:, 0]
    found = []
    for logits in (whole, windows):
        model.zero_grad()
        F.cross_entropy(logits(), truth).backward()  # type: ignore[no-untyped-call]
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    expected, seen = found
    assert expected.keys() == seen.keys() == dict(model.named_parameters()).keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(seen[name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)


def test_what_lies_far_from_the_patch_reaches_it_through_the_pyramid(smp: Segmenter) -> None:
    grid = Grid(4, 4, 128, 256)
    encoded = smp.encode(pictures(1, grid))
    decode = Patchwise(smp, grid, torch.device("cpu"))
    elsewhere = encoded._replace(deep=encoded.deep.clone())
    elsewhere.deep[:, :, -1, -1] += 10
    first = torch.tensor([0])
    assert not torch.equal(decode(encoded, first), decode(elsewhere, first))


@pytest.mark.parametrize(("height", "width"), [(13, 29), (16, 32), (1, 17)])
def test_logits_are_upsampled_to_the_padded_image_and_cut(smp: Segmenter, height: int, width: int) -> None:
    logits = torch.randn(2, 5, 4, 8, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    full = F.interpolate(logits.float(), size=(16, 32), mode="bilinear", align_corners=True)
    found = upsampled(smp, logits, (height, width))
    assert torch.equal(found, full[..., :height, :width])


def test_alone_a_patch_is_the_whole_image_of_the_network(model: Segmenter) -> None:
    grid = Grid(2, 2, 60, 90)
    patches = pictures(3, Grid(1, 1, 30, 45))
    decode = patch_decoder(model, grid, "patch", torch.device("cpu"))
    with torch.inference_mode():
        encoded = model.encode(patches)
        expected = upsampled(model, model.decode(encoded), (30, 45))
        assert torch.equal(decode(encoded, torch.tensor([0, 3, 1])), expected)
    for pieces, expected in ((Grid(2, 2, 60, 90), True), (Grid(1, 1, 60, 90), False)):
        within = patch_decoder(model, pieces, "image", torch.device("cpu"))
        assert isinstance(within, Patchwise) is expected


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_gpu_has_the_logits_and_the_gradients_of_the_cpu(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    grid, patches = Grid(4, 4, 120, 160), torch.tensor([0, 6, 11, 14])
    images = pictures(len(patches), grid)
    logits, gradients = [], []
    for device in (torch.device("cpu"), torch.device("cuda")):
        model = calibrated(Builder(architecture, 5, "none"), 0).to(device)
        found = Patchwise(model, grid, device)(model.encode(images.to(device)), patches)
        found.square().mean().backward()  # type: ignore[no-untyped-call]
        logits.append(found.detach().cpu())
        gradients.append({name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None})
    close(logits[1], logits[0])
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-3 * scale, msg=name)
    with torch.inference_mode(), autocast(torch.device("cuda"), "bfloat16"):
        half = Patchwise(model, grid, device)(model.encode(images.to(device)), patches)
    error = (half.cpu() - logits[0]).norm() / logits[0].norm()
    assert half.dtype == torch.float32
    assert 0 < float(error) < 0.05
