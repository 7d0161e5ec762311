"""Datasets: open, check, load, pack, download."""

from meal_gpu.data.checking import check, without
from meal_gpu.data.dataset import UNKNOWN, VOID, Dataset, Split
from meal_gpu.data.downloading import download
from meal_gpu.data.load import load_images, load_labels, open_images
from meal_gpu.data.packing import pack
from meal_gpu.data.registry import DATASETS, open_dataset
from meal_gpu.data.snapshot import difference, snapshot
from meal_gpu.images.probing import Problem

__all__ = [
    "DATASETS",
    "UNKNOWN",
    "VOID",
    "Dataset",
    "Problem",
    "Split",
    "check",
    "difference",
    "download",
    "load_images",
    "load_labels",
    "open_dataset",
    "open_images",
    "pack",
    "snapshot",
    "without",
]
