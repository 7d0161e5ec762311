"""Reads CVAT files with datumaro: OUT [cvat|voc] TARGET.npz; one array of label indices + 1 an image."""

import json
import sys
from pathlib import Path

import numpy as np
from datumaro.components.annotation import AnnotationType
from datumaro.components.dataset import Dataset

folder, form, target = sys.argv[1:]
dataset = Dataset.import_from(folder, form)
names = [category.name for category in dataset.categories()[AnnotationType.label]]
arrays, boxes = {}, {}
for item in dataset:
    masks = [a for a in item.annotations if a.type == AnnotationType.mask]
    shape = item.media.size if item.media is not None else masks[0].image.shape
    labels = np.zeros(shape, np.uint8)
    for annotation in item.annotations:
        if annotation.type == AnnotationType.mask:
            labels[annotation.image.astype(bool)] = annotation.label + 1
        elif annotation.type == AnnotationType.bbox:
            boxes.setdefault(item.id, []).append([names[annotation.label], *annotation.points])
    arrays[item.id] = labels
np.savez(Path(target), **{key.replace("/", "|"): value for key, value in arrays.items()})
print(json.dumps({"names": names, "boxes": boxes}))
