"""Label Studio's own SDK on our files.

brush FOLDER      ours.json, masks.npz -> decoded.npz; theirs.json: the masks as the SDK encodes them
tasks FOLDER      tasks.json, config.xml -> regions.npz: alpha of every brush region, by its id; prints JSON:
                  what its validation says of the config, of tasks, and of predictions with and without brush
"""

import json
import sys
from pathlib import Path

import numpy as np
from label_studio_sdk.converter import brush
from label_studio_sdk.label_interface import LabelInterface


def masks(folder: Path) -> None:
    ours = json.loads((folder / "ours.json").read_text())
    decoded = [brush.decode_rle(one["rle"]).reshape(*one["size"], 4)[..., 3] > 0 for one in ours]
    np.savez(folder / "decoded.npz", *decoded)
    theirs = []
    for mask in np.load(folder / "masks.npz").values():
        color = mask[..., None] * np.array([10, 200, 30, 100])
        ones = brush.mask2rle(mask.astype(np.uint8) * 255)
        theirs.append({"ones": ones, "color": brush.encode_rle(color.reshape(-1))})
    (folder / "theirs.json").write_text(json.dumps(theirs))


def tasks(folder: Path) -> None:
    interface = LabelInterface((folder / "config.xml").read_text(encoding="utf-8"))
    interface.validate()
    alpha, errors, brushless, theirs = {}, [], [], []
    entries = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    assert all(interface.validate_task({"data": entry["data"]}) for entry in entries)
    for entry in entries:
        for prediction in entry["predictions"]:
            errors += interface.validate_prediction(prediction, return_errors=True)
            rest = [r for r in prediction["result"] if r["type"] != "brushlabels"]
            brushless += interface.validate_prediction({**prediction, "result": rest}, return_errors=True)
            again = []
            for region in prediction["result"]:
                if region["type"] == "brushlabels":
                    layer = brush.decode_from_annotation("brush", [{**region, **region["value"]}]).values()
                    alpha[region["id"]] = next(iter(layer))
                    rle = brush.mask2rle(alpha[region["id"]].astype(np.uint8))
                    region = {**region, "value": {**region["value"], "rle": rle}}
                again.append(region)
            theirs += interface.validate_prediction({**prediction, "result": again}, return_errors=True)
    np.savez(folder / "regions.npz", **alpha)
    verdict = {"labels": sorted(interface.get_control("brush").labels), "errors": errors}
    print(json.dumps({**verdict, "brushless": brushless, "theirs": theirs}))


if __name__ == "__main__":
    {"brush": masks, "tasks": tasks}[sys.argv[1]](Path(sys.argv[2]))
