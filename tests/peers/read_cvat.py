"""datumaro on an export: FORMAT FOLDER OUT.npz; a mask "ITEM|CLASS|NUMBER" for each object that it finds."""

import collections
import sys

import numpy as np
from datumaro.components.annotation import AnnotationType
from datumaro.components.dataset import Dataset

if __name__ == "__main__":
    form, folder, target = sys.argv[1:]
    dataset = Dataset.import_from(folder, form)
    names = [entry.name for entry in dataset.categories()[AnnotationType.label]]
    masks, seen = {}, collections.Counter()
    for item in dataset:
        for annotation in item.annotations:
            if annotation.type == AnnotationType.mask:
                key = f"{item.id}|{names[annotation.label]}"
                masks[f"{key}|{seen[key]}"] = np.asarray(annotation.image, bool)
                seen[key] += 1
    np.savez(target, **masks)
    print(len(masks))
