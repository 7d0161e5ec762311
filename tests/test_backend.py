"""The backend on real street scenes: other people's networks, and every way to say "my images"."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import settle
from PIL import Image
from torch import nn

import meal_gpu

COUNT = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 60 training images of CamVid."""
    root = os.environ.get("MEAL_GPU_CAMVID")
    if not root:
        pytest.skip("set MEAL_GPU_CAMVID to the folder with CamVid's train.txt to run this test")
    target = tmp_path_factory.mktemp("camvid")
    files = sorted(path for path in (Path(root) / "train").iterdir() if path.suffix in (".jpg", ".png"))
    assert len(files) >= COUNT
    for path in files[:COUNT]:
        (target / path.name).symlink_to(path)
    return target


def smp_network() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=11)


def torchvision_network() -> nn.Module:
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=11)


def hugging_face_network() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_labels=11, hidden_sizes=[16, 32, 80, 128], depths=[1, 1, 1, 1], decoder_hidden_size=64
    )
    network: nn.Module = transformers.SegformerForSemanticSegmentation(config)
    return network


class Frames:
    """As a torch Dataset of (image, target)."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.open(self.paths[index]).convert("RGB"), index


@pytest.mark.camvid
@pytest.mark.slow
@pytest.mark.parametrize("network", [smp_network, torchvision_network, hugging_face_network])
def test_a_foreign_network_gets_a_query_in_three_lines(
    network: Callable[[], nn.Module], folder: Path
) -> None:
    torch.manual_seed(0)
    model = network()
    settle(model)
    query = meal_gpu.acquire(model, folder, n=16, candidates=64, features="shared", precision="float32")
    assert len(set(query.patch_ids.tolist())) == 16
    assert set(query.names) <= {path.name for path in folder.iterdir()}
    assert query.pool_scores is not None
    assert query.pool_scores.shape == (COUNT * 16,)
    # untrained, but told apart
    assert float(query.pool_scores.std()) > 1e-4
    assert 0 <= float(query.pool_scores.min()) < float(query.pool_scores.max()) <= math.log(11)
    assert query.candidates is not None
    assert len(query.candidates[0]) == 64


@pytest.mark.camvid
@pytest.mark.slow
@pytest.mark.parametrize("features", ["crop", "shared"])
def test_one_query_from_a_folder_a_list_a_dataset_and_a_tensor(folder: Path, features: str) -> None:
    torch.manual_seed(0)
    model = smp_network().eval()
    frames = Frames(folder)
    tensor = torch.stack([torch.from_numpy(np.array(frames[i][0])) for i in range(COUNT)])
    chosen = [
        meal_gpu.acquire(
            model, images, n=16, candidates=64, features=features, precision="float32", pool_share=share
        )
        for images, share in (
            (folder, 0.5), (folder, 0.0), (sorted(folder.iterdir()), 0.5), (frames, 0.5), (tensor, 0.5),
        )
    ]  # fmt: skip
    for query in chosen[1:]:
        assert query.patch_ids.tolist() == chosen[0].patch_ids.tolist()
        assert torch.equal(query.scores, chosen[0].scores)
