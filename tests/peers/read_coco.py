"""pycocotools on our annotations.json: masks.npz, by annotation id; compressed.json: the same, compressed."""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
from pycocotools import mask as coding
from pycocotools.coco import COCO

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):
        coco = COCO(str(folder / "annotations.json"))
    document = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    masks = {}
    for annotation in document["annotations"]:
        rle = coco.annToRLE(annotation)
        mask = coco.annToMask(annotation)
        masks[str(annotation["id"])] = mask
        assert annotation["area"] == int(coding.area(rle)), annotation["id"]
        assert annotation["bbox"] == coding.toBbox(rle).tolist(), annotation["id"]
        compressed = coding.encode(np.asfortranarray(mask))
        annotation["segmentation"] = {
            "size": compressed["size"],
            "counts": compressed["counts"].decode("ascii"),
        }
    np.savez(folder / "masks.npz", **masks)
    (folder / "compressed.json").write_text(json.dumps(document))
    print(len(masks))
