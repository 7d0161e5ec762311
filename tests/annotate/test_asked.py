"""The query folder, and the frames that annotators see of it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meal_gpu.annotate.pictures import read_frame

XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize(
    ("form", "said", "turned"),
    [("JPEG", "exif", True), ("MPO", "exif", True), ("JPEG", "xmp", False), ("PNG", "exif", False)],
)
def test_a_frame_is_turned_as_the_decoder_turns_it(
    form: str, said: str, turned: bool, tmp_path: Path
) -> None:
    """Boxes and crops are of the pixels that were scored."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :12] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"append_images": [Image.new("RGB", (24, 16))], "save_all": True} if form == "MPO" else {}
    more |= {"exif": exif} if said == "exif" else {"xmp": XMP}
    Image.fromarray(pixels).save(tmp_path / "x", format=form, **more)
    expected = np.rot90(pixels, -1) if turned else pixels
    assert np.array_equal(read_frame(str(tmp_path / "x"), expected.shape[:2]) > 127, expected > 127)
