"""Coverage-guided fuzzing of one reader: `python tests/faults/coverage_guided.py READER -max_total_time=60`.

Ends with a crash file where a reader raises anything but an error of ours. Needs atheris.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["meal_gpu"]):
    from meal_gpu import config
    from meal_gpu.annotate import coco, cvat, label_studio
    from meal_gpu.annotate.asked import Asked, Box, Item
    from meal_gpu.annotate.budget import Budget
    from meal_gpu.annotate.cost import CostModel
    from meal_gpu.data.folder import read_classes
    from meal_gpu.errors import MealGpuError

FOLDER = Path(tempfile.mkdtemp())
ITEM = Item(0, "a.png", "a.png", Box(0, 0, 16, 8), 0.5, 3.0, 10.0)
ASKED = Asked(FOLDER, 1, "meal", 0, ("road", "sky"), (16, 32), (2, 2), (ITEM,), {})


def written(suffix: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def target(content: bytes) -> object:
        path = FOLDER / f"input{suffix}"
        path.write_bytes(content)
        return read(path)

    return target


READERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "toml": (written(".toml", config.read), b'strategy = "meal"\nseed = 1\n'),
    "yaml": (written(".yaml", config.read), b"strategy: meal\nsize: [8, 16]\n"),
    "classes": (written(".txt", read_classes), b"void: 255\n0: road\nsky # 1\n"),
    "cvat": (
        lambda content: list(cvat.read({"annotations.xml": content}, ASKED)),
        b'<annotations><image id="0" name="a__l0_t0_r16_b8.png" width="16" height="8"><polygon label="road" '
        b'points="0,0;8,0;8,8"/></image></annotations>',
    ),
    "coco": (
        lambda content: list(coco.read({"a.json": content}, ASKED)),
        b'{"images": [{"id": 1, "file_name": "a__l0_t0_r16_b8.png", "width": 16, "height": 8}], '
        b'"categories": [{"id": 1, "name": "road"}], "annotations": [{"id": 1, "image_id": 1, '
        b'"category_id": 1, "segmentation": {"counts": [0, 128], "size": [8, 16]}}]}',
    ),
    "label-studio": (
        lambda content: list(label_studio.read({"a.json": content}, ASKED)),
        b'[{"data": {"image": "a__l0_t0_r16_b8.png"}, "annotations": [{"result": [{"type": "brushlabels", '
        b'"original_width": 16, "original_height": 8, "value": '
        b'{"format": "rle", "rle": [0, 0, 2, 0, 57, 27, 254, 255, 255, 223, 224, 0], '
        b'"brushlabels": ["road"]}}]}]}]',
    ),
    "budget": (lambda content: Budget.parse(content.decode("utf-8", "replace")), b"32patches"),
    "cost": (lambda content: CostModel.parse(content.decode("utf-8", "replace")), b"click=1.1,frame=8"),
}


def main() -> None:
    read, seed = READERS[sys.argv.pop(1)]
    corpus = Path(tempfile.mkdtemp())
    (corpus / "seed").write_bytes(seed)

    def once(content: bytes) -> None:
        try:
            read(content)
        except MealGpuError as error:
            assert str(error)

    once(seed)
    atheris.Setup(
        [*sys.argv, "-rss_limit_mb=4096", "-timeout=10", f"-artifact_prefix={corpus}/", str(corpus)], once
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
