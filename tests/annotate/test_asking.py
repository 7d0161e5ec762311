"""`meal-gpu acquire` on frames without any mask."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from networks import settle
from PIL import Image, ImageOps
from safetensors.torch import save_file

from meal_gpu import lock, models, ops, strategies
from meal_gpu.annotate.asked import Asked
from meal_gpu.annotate.formats import export
from meal_gpu.annotate.ingest import ingest
from meal_gpu.annotate.kept import Shards
from meal_gpu.annotate.labels import LabelStore
from meal_gpu.annotate.plot import coverage
from meal_gpu.annotate.pool import require_fit
from meal_gpu.cli import app
from meal_gpu.errors import ConfigError, DataError, InputError, MealGpuError, RunError
from meal_gpu.grid import Grid
from meal_gpu.images.listing import list_images
from meal_gpu.images.loader import Loader
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import Manifold

Ask = Callable[..., Asked]


@pytest.fixture
def frames(scenes: Path) -> Path:
    return scenes / "leftImg8bit" / "train"


@pytest.fixture
def ask(frames: Path, tmp_path: Path) -> Ask:
    """`meal-gpu acquire` with an untrained network, 96 patches, and other options as given."""

    def call(out: str, *options: object, ledger: str = "pool.parquet", images: object = frames) -> Asked:
        named = options[options.index("--strategy") + 1] if "--strategy" in options else "meal"
        candidates = ["--candidates", 30] if strategies.get(str(named)).measured else []
        arguments = ["acquire", "--images", images, "--model", "meal_gpu.models:segmenter",
                     "--model-arg", "classes=5", *candidates, "--precision", "float32",
                     "--ledger", tmp_path / ledger, "--out", tmp_path / out, *options]  # fmt: skip
        app([str(a) for a in arguments], standalone_mode=False)
        return Asked.read(tmp_path / out)

    return call


def test_a_query_holds_what_a_person_needs(
    ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ask("q", "-n", 8)
    assert len(asked.items) == 8 and len({item.patch for item in asked.items}) == 8
    grid, ledger = Grid(4, 4, 96, 192), Ledger.read(tmp_path / "pool.parquet")
    totals = 0.0
    for item in asked.items:
        assert tuple(item.box) == tuple(grid.boxes([item.patch])[0])
        assert ledger.names[item.patch // 16] == item.image
        assert item.score == pytest.approx(float(ledger.frame["score"][item.patch]))
        mask = asked.prediction(item)
        assert mask.shape == (24, 48) and mask.max() < 5
        totals += item.clicks
    assert ledger.labelled().tolist() == []
    assert asked.notes["estimate"]["clicks"] == pytest.approx(totals, abs=0.06)
    assert (tmp_path / "q" / "budget.svg").read_bytes().startswith(b"<?xml")
    said = capsys.readouterr().out
    assert "pool: 96 patches, 6 new frames, 6 frames scored now" in said
    assert "query 1: 8 patches (8.33%)" in said and "clicks" in said and "coverage" in said
    assert not list(tmp_path.glob(".partial-*"))


def test_two_processes_do_not_write_one_folder(ask: Ask, tmp_path: Path) -> None:
    with lock.alone(tmp_path / "q"), pytest.raises(RunError, match="/q is in use by process"):
        ask("q", "-n", 1, "--strategy", "random")
    asked = ask("q", "-n", 1, "--strategy", "random")
    out = tmp_path / "cvat"
    with lock.alone(out), pytest.raises(RunError, match="/cvat is in use by process"):
        export(asked, out, form="cvat")
    assert export(asked, out, form="cvat")
    assert not list(tmp_path.glob(".partial-*"))


@pytest.mark.parametrize("strategy", ["meal", "entropy", "random"])
def test_a_query_answers_every_smaller_budget(ask: Ask, strategy: str) -> None:
    large = [item.patch for item in ask("large", "-n", 12, "--strategy", strategy).items]
    small = [item.patch for item in ask("small", "-n", "5patches", "--strategy", strategy).items]
    assert large[:5] == small
    share = [item.patch for item in ask("share", "--budget", "7%", "--strategy", strategy).items]
    assert share == large[:7]


def test_a_budget_of_clicks_or_hours_is_kept(ask: Ask) -> None:
    everything = ask("all", "--budget", "29")
    clicks = np.cumsum([item.clicks for item in everything.items])
    budget = float(clicks[6]) + 0.5
    some = ask("some", "--budget", f"{budget:.3f}clicks")
    spent = sum(item.clicks for item in some.items)
    assert [i.patch for i in some.items] == [i.patch for i in everything.items[: len(some.items)]]
    assert spent <= budget < spent + everything.items[len(some.items)].clicks
    hours = ask("hours", "--budget", "0.05h", "--cost", "patch=30,click=0,frame=60")
    opened = len({item.image for item in hours.items})
    assert (30 * len(hours.items) + 60 * opened) / 3600 <= 0.05
    with pytest.raises(MealGpuError, match="pays for no patch: the first takes"):
        ask("none", "--budget", "1clicks")


@pytest.mark.parametrize("strategy", ["meal", "suggestive", "entropy", "random", "core-set", "badge"])
def test_a_budget_may_pay_for_the_last_patch(
    ask: Ask, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though of all candidates together those of strategies that take some would come by their score."""
    candidates = ("--candidates", 200) if strategies.get(strategy).measured else ()
    options = ("--strategy", strategy, *candidates)
    everything = ask("all", *options, "--budget", "1000h")
    assert sorted(item.patch for item in everything.items) == list(range(96))
    assert "raise --candidates" not in capsys.readouterr().out
    some = ask("some", *options, "-n", 9)
    assert [item.patch for item in some.items] == [item.patch for item in everything.items[:9]]


def test_more_candidates_are_advised_where_they_help(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(ask("some", "--budget", "1000h").items) == 29
    assert "the budget pays for more than the candidates: raise --candidates" in capsys.readouterr().out
    ask("all", "--budget", "1000h", "--strategy", "entropy")
    assert "raise --candidates" not in capsys.readouterr().out


@pytest.mark.parametrize("pack", [1, 3])
def test_a_budget_may_pay_for_more_than_a_strategy_has_candidates(
    ask: Ask, pack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meal_gpu.pool.CANDIDATES", 20)  # for strategies that take none
    options = ("--strategy", "entropy", "--pack", pack)
    large, small = (ask(budget, *options, "--budget", budget).items for budget in ("1.5h", "0.5h"))
    assert 20 < len(large) < 96 and len(small) < len(large)
    assert [item.patch for item in small] == [item.patch for item in large[: len(small)]]
    assert min(item.score for item in large[:20]) >= max(item.score for item in large[20:])


@pytest.mark.parametrize("strategy", ["kmeans", "typiclust"])
def test_a_query_that_is_chosen_together_answers_no_smaller_budget(
    ask: Ask, strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--strategy", strategy)
    for budget, unit in (("1h", "hours"), ("50clicks", "clicks")):
        with pytest.raises(ConfigError, match=rf"'{strategy}' chooses all .* {unit} .* patches or %"):
            ask("refused", *options, "--budget", budget)
    loose = ask("loose", *options, "-n", 9)
    said = capsys.readouterr().out
    assert "query 1: 9 patches" in said and "the first" not in said and "budget.svg" not in said
    assert not (tmp_path / "loose" / "budget.svg").exists()
    packed = ask("packed", *options, "-n", 9, "--pack", 4)
    assert {item.patch for item in packed.items} == {item.patch for item in loose.items}


def test_packing_opens_fewer_frames(ask: Ask) -> None:
    loose = ask("loose", "-n", 8)
    tight = ask("tight", "-n", 8, "--pack", 8)
    assert len({i.image for i in tight.items}) <= len({i.image for i in loose.items})
    assert tight.items[0].patch == loose.items[0].patch
    assert len({i.image for i in tight.items}) == 2 or len({i.image for i in tight.items[:4]}) == 1


def test_invalid_patches_are_never_asked(ask: Ask, tmp_path: Path) -> None:
    valid = np.full((96, 192), 255, np.uint8)
    valid[60:] = 0  # the bonnet: half of the third row, all of the fourth
    Image.fromarray(valid).save(tmp_path / "valid.png")
    asked = ask("q", "-n", 96, "--valid", tmp_path / "valid.png")
    assert len(asked.items) == 72  # a half is enough
    for item in asked.items:
        assert item.box.bottom <= 72
        inside = valid[item.box.top : item.box.bottom, item.box.left : item.box.right] > 0
        assert ((asked.prediction(item) == 255) == ~inside).all()
    Image.fromarray(valid[:50]).save(tmp_path / "small.png")
    with pytest.raises(MealGpuError, match=r"small.png: 50×192 pixels .* found, 96×192 expected"):
        ask("r", "--valid", tmp_path / "small.png")
    with pytest.raises(MealGpuError, match=rf"^{tmp_path}/none\.png: no such mask$"):
        ask("r", "--valid", tmp_path / "none.png")


def test_a_window_slides_over_larger_frames(ask: Ask) -> None:
    whole = ask("whole", "-n", 6, "--window", "96x192", "--strategy", "entropy", ledger="a.parquet")
    same = ask("same", "-n", 6, "--strategy", "entropy", ledger="b.parquet")
    assert [i.patch for i in whole.items] == [i.patch for i in same.items]
    slid = ask("slid", "-n", 6, "--window", "64x96", ledger="c.parquet")
    assert len(slid.items) == 6 and all(0 < i.score < np.log(5) + 1e-5 for i in slid.items)


def test_a_working_size_gives_boxes_of_the_frames_themselves(ask: Ask) -> None:
    asked = ask("q", "-n", 4, "--size", "48x96")
    assert asked.size == (96, 192)
    for item in asked.items:
        assert (item.box.height, item.box.width) == asked.prediction(item).shape == (24, 48)


def test_what_is_scored_is_what_is_labelled(ask: Ask) -> None:
    told = (
        r"--grid 5x5: patches of 48×96 pixels, which are scored, lie up to 4 pixels beside those of 96×192, "
        r"which are labelled; 5x4 fits"
    )
    assert ask("evenly", "-n", 1, "--size", "48x96", "--grid", "4x6", ledger="a.parquet").items
    with pytest.raises(ConfigError, match=told):
        ask("unevenly", "-n", 1, "--size", "48x96", "--grid", "5x5", ledger="b.parquet")
    with pytest.raises(ConfigError, match="fits"):
        require_fit((16, 16), (360, 480), (720, 960))
    for working, native in (((512, 1024), (1080, 1917)), ((360, 480), (719, 957)), ((90, 120), (90, 120))):
        require_fit((4, 4), working, native)


def test_frames_of_another_size_are_named_before_anything_is_asked(
    ask: Ask, frames: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for file in sorted(frames.rglob("*.png")):
        shutil.copyfile(file, folder / file.name)
    size = ["--size", "48x96"]
    asked = ask("a", "-n", 1, *size, images=folder)
    LabelStore.of(tmp_path / "pool.parquet").describe(asked.classes, asked.size, asked.grid)
    for file in folder.iterdir():
        with Image.open(file) as image:
            image.resize((384, 192)).save(file)
    first = Ledger.read(tmp_path / "pool.parquet").names[0]
    with pytest.raises(DataError, match=rf"{first}: 192×384 pixels .*pool\.parquet have 96×192; restore"):
        ask("b", "-n", 1, *size, images=folder)
    before = Ledger.read(tmp_path / "pool.parquet")
    before.origin = None  # as ledgers were until 2026-11
    before.write(tmp_path / "pool.parquet")
    with pytest.raises(RunError, match=r"are of frames of 96×192 pixels .* have 192×384 now: restore"):
        ask("b", "-n", 1, *size, images=folder)
    assert not (tmp_path / "b").exists()


def test_the_first_frame_of_another_size_does_not_condemn_others(ask: Ask, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (192, 96), (number, 0, 0)).save(folder / f"{number}.png")
    random = ("-n", 1, "--strategy", "random")
    ask("a", *random, images=folder)
    Image.new("RGB", (64, 64)).save(folder / "0.png")
    Image.new("RGB", (192, 96)).save(folder / "3.png")
    with pytest.raises(DataError, match=r"0\.png: 64×64 pixels .*pool\.parquet have 96×192; restore") as told:
        ask("b", *random, images=folder)
    assert "3.png" not in str(told.value)


@pytest.fixture
def cameras(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of frames of the same names, sizes and times, which show different things."""
    folders = tmp_path / "front", tmp_path / "rear"
    for number, folder in enumerate(folders):
        folder.mkdir()
        for name in ("0.bmp", "1.bmp"):
            pixels = np.random.default_rng((number, int(name[0]))).integers(0, 255, (96, 192, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
            os.utime(folder / name, (1, 1))
    return folders


def test_pools_of_the_same_names_may_share_a_cache(
    ask: Ask, cameras: tuple[Path, Path], tmp_path: Path
) -> None:
    def entropies(name: str, folder: Path, cache: str) -> torch.Tensor:
        ledger = f"{name}.parquet"
        given = ("-n", 1, "--strategy", "entropy", "--cache", tmp_path / cache)
        ask(f"of-{name}", *given, ledger=ledger, images=folder)
        return torch.from_numpy(Ledger.read(tmp_path / ledger).frame["score"].to_numpy(copy=True))

    alone = [entropies(f"alone-{folder.name}", folder, f"of-{folder.name}s") for folder in cameras]
    assert not torch.equal(*alone)
    for folder, expected in zip(cameras, alone, strict=True):
        assert torch.equal(entropies(f"shared-{folder.name}", folder, "shared"), expected)
    front = Shards(str(tmp_path / "shared"), "0" * 64, "a" * 64)
    listing = list_images(str(cameras[0]))
    front.write(listing, {"scores": torch.ones(2, 16)})
    assert not Shards(front.place, "0" * 64).read(listing, ["scores"])[0].any()
    Shards(front.place, "0" * 64).write(listing, {"scores": torch.zeros(2, 16)})
    for pool, value in (("a" * 64, 1), ("", 0), ("b" * 64, None)):
        known, found = Shards(front.place, "0" * 64, pool).read(listing, ["scores"])
        assert known.all() == (value is not None) and (value is None or (found["scores"] == value).all())


def test_a_query_of_a_pool_with_the_same_names_is_refused(
    ask: Ask, cameras: tuple[Path, Path], tmp_path: Path
) -> None:
    random = ("-n", 1, "--strategy", "random")
    for name, folder in zip(("front", "rear"), cameras, strict=True):
        ask(f"of-{name}", *random, ledger=f"{name}.parquet", images=folder)
    told = r"of-front: a query of another pool than .*rear\.parquet, though names may be the same"
    with pytest.raises(DataError, match=told):
        ask("more", *random, "--exclude", tmp_path / "of-front", ledger="rear.parquet", images=cameras[1])
    with pytest.raises(DataError, match=told):
        ingest(tmp_path / "of-front", tmp_path / "of-front" / "predictions", tmp_path / "rear.parquet")
    ask("more", *random, "--exclude", tmp_path / "of-rear", ledger="rear.parquet", images=cameras[1])


def test_a_query_of_frames_that_were_moved_can_be_exported(
    ask: Ask, cameras: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ask("q", "-n", 3, "--strategy", "random", images=cameras[0])
    before = {item.name: pixels.copy() for item, _, pixels in asked.crops()}
    moved = cameras[0].rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"front/\d\.bmp: no such image file; .*--images"):
        export(asked, tmp_path / "csv", form="csv")
    given = ["export", "--to", "csv", "--query", str(asked.path), "--out", str(tmp_path / "csv"), "--images"]
    with pytest.raises(DataError, match=r"rear/\d\.bmp: no longer the file that was queried .* --images"):
        app([*given, str(cameras[1])], standalone_mode=False)
    monkeypatch.chdir(tmp_path)
    app([*given, "moved"], standalone_mode=False)
    assert {Path(file).parent for file in pd.read_csv(tmp_path / "csv" / "query.csv")["file"]} == {moved}
    for name, pixels in before.items():
        with Image.open(tmp_path / "csv" / "images" / f"{name}.png") as image:
            assert np.array_equal(np.asarray(image), pixels)
    (moved / asked.items[0].image).unlink()
    with pytest.raises(DataError, match=r"\d\.bmp: a frame of .*/q that is not among the images; bring it"):
        app([*given[:-2], str(tmp_path / "again"), "--images", str(moved)], standalone_mode=False)


def test_a_manifold_that_is_fitted_anew_is_spoken_of(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    told = "the manifold is fitted anew: those that were kept are of other features or limits"
    for out, options, said in (
        ("pca", ("--strategy", "meal-pca"), False), ("first", (), False), ("same", (), False),
        ("wanted", ("--refit",), False), ("limit", ("--manifold-limit", 40), True),
        ("other", ("--features", "shared"), True), ("back", (), False),
    ):  # fmt: skip
        ask(out, "-n", 1, *options)
        assert (told in capsys.readouterr().err) == said, out


def test_a_name_that_no_crop_could_have_is_refused_first(ask: Ask, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    random = ("-n", 16, "--strategy", "random")
    image = Image.new("RGB", (19200, 96))
    image.save(folder / f"{'é' * 108}.png")
    export(ask("q", *random, images=folder), tmp_path / "csv", form="csv")
    long = folder / f"{'é' * 109}.png"
    image.save(long)
    with pytest.raises(DataError, match=r"é\.png: its name has 222 bytes, and may have 220, .*; rename it"):
        ask("r", *random, images=folder)
    with pytest.raises(InputError, match="no patch is left"):
        ask("r", *random, "--on-bad", "skip", "--exclude", tmp_path / "q", images=folder)
    assert long.name in (tmp_path / "pool.quarantine.csv").read_text()
    ledger = Ledger.read(tmp_path / "pool.parquet").extended([long.name])  # as one of before may have it
    ledger.write(tmp_path / "pool.parquet")
    ask("r", *random, images=folder)


def test_what_we_wrote_below_the_frames_is_no_frame(ask: Ask, frames: Path, tmp_path: Path) -> None:
    for file in sorted(frames.rglob("*.png")):
        shutil.copyfile(file, tmp_path / file.name)
    options, names = ("-n", 2, "--strategy", "entropy"), sorted(file.name for file in tmp_path.glob("*.png"))
    asked = ask("query", *options, images=tmp_path)
    ledger, query = tmp_path / "pool.parquet", tmp_path / "query"
    app(
        ["export", "--to", "csv", "--query", str(query), "--out", str(tmp_path / "sent")],
        standalone_mode=False,
    )
    store = LabelStore.of(ledger)
    store.describe(asked.classes, asked.size, asked.grid)
    labelled = Ledger.read(ledger)
    for item in asked.items:
        store.write(item.patch, asked.prediction(item))
    labelled.label([item.patch for item in asked.items], 1)
    labelled.write(ledger)
    for to in ("smp", "mmseg", "nnunet"):
        app(["export", "--to", to, "--images", str(tmp_path), "--ledger", str(ledger),
             "--out", str(tmp_path / "data" / to)], standalone_mode=False)  # fmt: skip
    assert len(list(tmp_path.rglob("*.png"))) > len(names) + 10
    ask("query-2", *options, images=tmp_path)
    assert list(Ledger.read(ledger).names) == names


def test_a_manifest_will_do(ask: Ask, frames: Path, tmp_path: Path) -> None:
    files = sorted(frames.rglob("*.png"))[:3]
    pd.DataFrame({"path": [str(f) for f in files], "name": ["x/1.png", "x/2.png", "y.png"]}).to_parquet(
        tmp_path / "list.parquet"
    )
    asked = ask("q", "-n", 48, "--strategy", "random", images=tmp_path / "list.parquet")
    assert {item.image for item in asked.items} == {"x/1.png", "x/2.png", "y.png"}


def test_a_further_query_decodes_what_is_new_and_what_it_chooses(
    ask: Ask, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    class Spy(Loader):
        def __iter__(self) -> Iterator[torch.Tensor]:
            for batch in super().__iter__():
                decoded.append(len(batch))
                yield batch

    monkeypatch.setattr("meal_gpu.images.sources.Loader", Spy)
    folder = tmp_path / "frames"
    folder.mkdir()
    *first, last = sorted(frames.rglob("*.png"))
    for file in first:
        (folder / file.name).write_bytes(file.read_bytes())
    ask("a", "-n", 9, images=folder)
    assert sum(decoded) == len(first), "a first query decodes each frame once"
    (folder / last.name).write_bytes(last.read_bytes())
    decoded.clear()
    asked = ask("b", "-n", 2, "--strategy", "entropy", images=folder)
    assert sum(decoded) == len({last.name, *(item.image for item in asked.items)})
    decoded.clear()
    again = ask("c", "-n", 2, "--strategy", "entropy", images=folder)
    assert sum(decoded) == len({item.image for item in again.items}) < len(first)
    assert again.items == asked.items


def test_two_seeds_differ_and_one_seed_does_not(ask: Ask) -> None:
    a, b, c = (ask(n, "-n", 6, "--seed", s, ledger=f"{n}.parquet") for n, s in (("a", 0), ("b", 0), ("c", 1)))
    assert a.items == b.items
    assert [i.patch for i in a.items] != [i.patch for i in c.items]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "6 weeks"], "expected such as 32patches"),
        (["--grid", "4"], "expected two numbers"),
        (["--overlap", "0.5"], "--overlap is that of the windows of --window"),
        (["--mean", "123.7,116.3,103.5"], "values in 0..1: divide by 255"),
        (["--grid", "3x4"], "has a grid of 4×4"),
        (["--strategy", "meall"], "known: entropy, margin, least-confidence"),
        (["--device", "gpu"], "known: auto, cpu, cuda"),
        (["--precision", "int8"], "known: auto, float32"),
        (["--features", "x"], "known: crop, shared"),
        (["--model", "meal_gpu.models"], "meal_gpu.models"),
        (["--model", "nowhere.at:all"], "nowhere"),
        (["--checkpoint", "nowhere.pt"], "nowhere.pt"),
        (["--cost", "klick=2"], "'klick' is unknown"),
        (["--exclude", "nowhere"], "not a query folder"),
        (["--ledger", "pool.v2"], r"--ledger pool.v2: must end in .parquet, .*; say pool.v2.parquet"),
        (["--model-arg", "classes"], "expected KEY=VALUE"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    ask: Ask, tmp_path: Path, options: list[str], words: str
) -> None:
    ask("first", "-n", 2, "--strategy", "random")
    before = (tmp_path / "pool.parquet").read_bytes()
    with pytest.raises(MealGpuError, match=words) as caught:
        ask("second", *options)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "pool.parquet").read_bytes() == before
    assert not (tmp_path / "second").exists()


def test_a_frame_that_went_away_is_named(ask: Ask, frames: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for file in sorted(frames.rglob("*.png")):
        (folder / file.name).write_bytes(file.read_bytes())
    ask("a", "-n", 2, images=folder)
    gone = sorted(folder.iterdir())[1]
    gone.unlink()
    for _ in range(2):
        with pytest.raises(
            MealGpuError, match=rf"{gone.name}: .*no longer among the images \(1 of 6 are missing\)"
        ):
            ask("b", "-n", 2, images=folder)
        shutil.copyfile(sorted(frames.rglob("*.png"))[1], folder / "renamed.png")
    with pytest.raises(MealGpuError, match=r"a is not empty"):
        ask("a", "-n", 2, images=folder)


def test_another_model_is_scored_anew(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    ask("a", "-n", 2, "--strategy", "entropy")
    ask("b", "-n", 2, "--strategy", "entropy", "--model-arg", "architecture=paper")
    assert "0 new frames, 6 frames scored now" in capsys.readouterr().out
    ask("c", "-n", 2, "--strategy", "entropy")
    assert "0 new frames, 0 frames scored now" in capsys.readouterr().out


def test_a_model_of_other_arguments_is_another(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    """What a factory makes of them may lie in no weight."""
    scores = []
    for scale in ("1.0", "0.01", "1.0"):
        given = ("--model", "shard_networks:Scaled", "--model-arg", f"scale={scale}")
        asked = ask(f"q{len(scores)}", "-n", 2, "--strategy", "entropy", *given)
        scores.append([item.score for item in asked.items])
    assert capsys.readouterr().out.count("6 frames scored now") == 2
    assert scores[0] == scores[2] != scores[1]


def test_the_normalisation_is_the_models_own(ask: Ask) -> None:
    foreign = ("-n", 2, "--strategy", "entropy", "--model", "shard_networks:foreign")
    usual = ask("a", *foreign)
    plain = ask("b", *foreign, "--mean", "0,0,0", "--std", "1,1,1")
    assert usual.items[0].score != plain.items[0].score
    assert ask("c", *foreign, "--mean", "0.485,0.456,0.406").items == usual.items
    for number, (wrong, told) in enumerate({
        ("--mean", "0,0"): r"mean '0,0': expected three numbers",
        ("--std", "0,1,1"): r"those of std above 0; got .*\(0.0, 1.0, 1.0\)",
    }.items()):  # fmt: skip
        with pytest.raises(MealGpuError, match=told):
            ask(f"wrong{number}", *foreign, *wrong)
    with pytest.raises(MealGpuError, match="Segmenter is a Network with a normalisation of its own"):
        ask("d", "-n", 2, "--mean", "0,0,0")


def test_a_ledger_may_be_a_link(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pool.parquet").symlink_to("elsewhere/real.parquet")
    ask("a", "-n", 2)
    ask("b", "-n", 2, ledger="elsewhere/real.parquet")
    assert (tmp_path / "pool.parquet").is_symlink()
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == [
        "real.cache", "real.lock", "real.parquet"
    ]  # fmt: skip
    assert not list(tmp_path.glob("pool.[!p]*"))


def test_a_query_holds_in_every_working_directory(
    ask: Ask, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ask("whole", "-n", 3, "--strategy", "random")
    monkeypatch.chdir(frames.parent)
    asked = ask("relative", "-n", 3, "--strategy", "random", images=frames.name)
    assert [item.file for item in asked.items] == [item.file for item in whole.items]
    assert len(list(asked.crops())) == 3


def test_a_query_says_of_which_files_it_is(ask: Ask, frames: Path) -> None:
    asked = ask("query", "-n", 3, "--strategy", "random")
    for item in asked.items:
        assert item.digest == sha256(Path(item.file).read_bytes()).hexdigest()
    asked.require_unchanged()
    replaced = Path(asked.items[0].file)
    with Image.open(replaced) as image:
        ImageOps.mirror(image).save(replaced, format=image.format)
    with pytest.raises(
        DataError,
        match=rf"{replaced.name}: no longer .* \(SHA-256 \w{{12}}…, then {asked.items[0].digest[:12]}",
    ):
        list(asked.crops())
    with pytest.raises(DataError, match=rf"{replaced.name}: no longer"):
        asked.require_unchanged()


def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(MealGpuError, match=r"is the working directory .* name a folder below it as --out"):
        ask("empty", "-n", 2)
    assert not (tmp_path / "pool.parquet").exists() and not (tmp_path / "pool.cache").exists()


def test_names_of_classes_that_labels_do_not_have_are_refused_before_the_work(
    ask: Ask, tmp_path: Path
) -> None:
    store = LabelStore.of(tmp_path / "pool.parquet")
    store.describe(("a", "b", "c", "d", "e"), (96, 192), (4, 4))
    assert ask("q", "-n", 1, "--strategy", "random").classes == ("a", "b", "c", "d", "e")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\nx\n")
    with pytest.raises(
        ConfigError, match=r"of 5 classes \(a, b, c, d, e\), the model's of 5 \(a, b, c, d, x\)"
    ):
        ask("r", "-n", 1, "--classes", tmp_path / "classes.txt")
    with pytest.raises(ConfigError, match=r"the model's of 3 \(class 0, class 1, class 2\)"):
        ask("s", "-n", 1, "--strategy", "random", "--model-arg", "classes=3")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\nb\npatch\nd\ne\n", r"class 'patch': .*no label is read; rename the class"),
        ("1: a\n0: b\n2: c\n3: d\n4: e\n", r"classes.txt: ids other than 0 to 4 in this order"),
        ("a\nb\nc\nd\n7: e\n", r"classes.txt: ids other than 0 to 4"),
        ("void: 5\na\nb\nc\nd\ne\n", r"or a void other than 255: .*; write one name per line"),
        ("void: 255, 200\na\nb\nc\nd\ne\n", r"or a void other than 255"),
    ],
)
def test_classes_that_a_query_cannot_have_are_refused(
    ask: Ask, tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(MealGpuError, match=words) as caught:
        ask("q", "--classes", tmp_path / "classes.txt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "q").exists() and not (tmp_path / "pool.parquet").exists()


@pytest.mark.parametrize("text", ["a\nb\nc\nd\ne\n", "0: a\n1: b\n2: c\n3: d\n4: e\nvoid: 255\n"])
def test_ids_that_are_the_models_own_may_stand_there(ask: Ask, tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    options = ("-n", 1, "--strategy", "random", "--classes", tmp_path / "classes.txt")
    assert ask("q", *options).classes == ("a", "b", "c", "d", "e")


def test_features_of_a_pool_are_kept_for_the_next_query(ask: Ask, tmp_path: Path) -> None:
    for features in ("crop", "shared"):
        first = ask(f"a-{features}", "-n", 5, "--features", features, ledger=f"{features}.parquet")
        again = ask(f"b-{features}", "-n", 5, "--features", features, ledger=f"{features}.parquet")
        assert first.items == again.items
        assert len(list((tmp_path / f"{features}.cache").glob("manifold-*"))) == 1


def test_the_manifold_follows_a_pool_that_grows_when_it_is_asked_to(
    ask: Ask, frames: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    files = sorted(frames.rglob("*.png"))

    def kept(name: str, *options: object, ledger: str = "pool.parquet") -> bytes:
        ask(name, "-n", 5, *options, images=folder, ledger=ledger)
        (file,) = (tmp_path / ledger).with_suffix(".cache").glob("manifold-*")
        return file.read_bytes()

    def add(some: list[Path]) -> None:
        for file in some:
            (folder / file.name).write_bytes(file.read_bytes())

    add(files[:4])
    first = kept("a")
    add(files[4:])
    assert kept("b") == first
    grown = kept("c", "--refit")
    assert grown != first
    assert grown == kept("d", ledger="whole.parquet") == kept("e")
    # A pool that is begun anew has no part in what is left of the other one
    (tmp_path / "pool.parquet").unlink()
    (folder / files[0].name).unlink()
    assert grown != kept("f") == kept("g", ledger="other.parquet")


def test_a_kept_manifold_goes_on_where_and_how_it_was_fitted(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    load = Manifold.load

    def noted(path: Path, **how: Any) -> Manifold:
        given.append(how)
        return load(path, **how)

    monkeypatch.setattr(Manifold, "load", noted)
    for name in ("a", "b"):
        ask(name, "-n", 3, "--ops", "reference")
    assert given == [{"device": torch.device("cpu"), "ops": ops.select("reference")}]


def test_the_classes_are_the_models_whatever_it_predicts(ask: Ask) -> None:
    """So that every query of a pool has the same."""
    expected = tuple(f"class {number}" for number in range(5))
    assert ask("q", "-n", 1, "--strategy", "random").classes == expected


def test_frames_whose_names_hold_dots_have_crops_of_their_own(ask: Ask, frames: Path, tmp_path: Path) -> None:
    files = sorted(frames.rglob("*.png"))
    names = [f"1690000000.{number}23456" for number in range(len(files))]
    manifest = tmp_path / "pool-frames.parquet"
    pd.DataFrame({"path": [str(file) for file in files], "name": names}).to_parquet(manifest)
    asked = ask("q", "-n", 60, "--strategy", "random", images=manifest)
    assert len(asked.by_name) == 60
    assert {name.split("__")[0] for name in asked.by_name} == set(names)


def test_only_queries_of_this_pool_are_excluded(ask: Ask, frames: Path, tmp_path: Path) -> None:
    folder = tmp_path / "others"
    folder.mkdir()
    for number, file in enumerate(sorted(frames.rglob("*.png"))):
        (folder / f"other{number}.png").write_bytes(file.read_bytes())
    ask("other", "-n", 2, "--strategy", "random", ledger="other.parquet", images=folder)
    with pytest.raises(MealGpuError, match=r"other: patch \d+ of other\d\.png is not in .*another pool's"):
        ask("q", "-n", 2, "--strategy", "random", "--exclude", tmp_path / "other")


def test_coverage_is_what_the_potential_lost() -> None:
    points = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert coverage(points, np.array([0, 2, 1])).tolist() == [0.0, 1 - 9 / 25, 1.0]
    assert coverage(np.zeros((3, 2)), np.array([1, 0])).tolist() == [1.0, 1.0]


def test_a_query_folder_says_what_it_is(ask: Ask, tmp_path: Path) -> None:
    ask("q", "-n", 3)
    meta = json.loads((tmp_path / "q" / "query.json").read_text())
    assert meta["format"] == "meal_gpu.query/1"
    assert meta["notes"]["budget"] == "3 patches"
    (tmp_path / "q" / "query.json").write_text(json.dumps(meta | {"format": "meal_gpu.query/9"}))
    with pytest.raises(MealGpuError, match=r"'meal_gpu.query/9', this version reads"):
        Asked.read(tmp_path / "q")


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, ...]:
    """Of three networks that tell images apart."""
    files = []
    for seed in range(3):
        torch.manual_seed(seed)
        network = models.segmenter(classes=5)
        settle(network)
        files.append(tmp_path / f"{seed}.safetensors")
        save_file({name: values.contiguous() for name, values in network.state_dict().items()}, files[-1])
    return tuple(files)


def test_what_a_strategy_takes_not_is_refused(ask: Ask, weights: tuple[Path, ...], tmp_path: Path) -> None:
    for strategy, option, word in (
        ("entropy", ("--candidates", 20), "candidates"),
        ("meal-ft", ("--refit",), "refit"),
        ("meal", ("--member", weights[1]), "members"),
    ):
        with pytest.raises(ConfigError, match=f"{word} was given, but strategy '{strategy}' takes none"):
            ask("q", "--strategy", strategy, *option)
    assert not (tmp_path / "q").exists() and not (tmp_path / "pool.parquet").exists()


def test_an_ensemble_asks_with_the_weights_of_its_members(ask: Ask, weights: tuple[Path, ...]) -> None:
    options = ("--strategy", "ensemble", "-n", "9patches", "--checkpoint", weights[0])
    with pytest.raises(ConfigError, match="give the other networks' weights as --member"):
        ask("none", *options)
    one = ask("one", *options, "--member", weights[1], ledger="one.parquet")
    two = ask("two", *options, "--member", weights[1], "--member", weights[2], ledger="two.parquet")
    assert len(one.items) == len(two.items) == 9
    assert [item.score for item in one.items] != [item.score for item in two.items]


def test_bald_takes_two_passes_or_more(ask: Ask) -> None:
    for given in (("--strategy", "bald"), ("--measure", "bald")):
        with pytest.raises(InputError, match=r"passes is 1.*: bald takes 2 or more"):
            ask("none", *given, "--passes", 1)


def test_a_temperature_is_applied_and_kept_apart(ask: Ask, weights: tuple[Path, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="strategy 'meal-calibrated' needs --temperature"):
        ask("none", "--strategy", "meal-calibrated")
    with pytest.raises(ConfigError, match="temperature is 0"):
        ask("none", "--temperature", 0)
    assert not (tmp_path / "none").exists()
    options = ("--strategy", "entropy", "-n", "9patches", "--checkpoint", weights[0])
    plain = ask("plain", *options)
    hot = ask("hot", *options, "--temperature", 50.0)
    again = ask("again", *options)
    assert min(item.score for item in hot.items) > max(item.score for item in plain.items)
    assert [item.score for item in plain.items] == [item.score for item in again.items]


def test_what_is_known_of_a_frame_is_of_its_content_and_of_how_the_model_is_applied(
    ask: Ask, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for file in sorted(frames.rglob("*.png"))[:3]:
        (folder / file.name).write_bytes(file.read_bytes())
    valid = np.full((96, 192), 255, np.uint8)
    valid[60:] = 0
    Image.fromarray(valid).save(tmp_path / "valid.png")
    count = iter(range(99))

    def scored(*options: object) -> str:
        capsys.readouterr()
        given = ("-n", 2, "--strategy", "entropy", "--model", "shard_networks:foreign", *options)
        ask(f"q{next(count)}", *given, images=folder)
        return capsys.readouterr().out.split(" frames scored now")[0].rsplit(", ", 1)[1]

    assert scored() == "3" and scored() == "0"
    changed = sorted(folder.iterdir())[2]
    with Image.open(changed) as image:
        ImageOps.flip(image).save(changed)
    assert scored() == "1"
    for options in (
        ("--precision", "bfloat16"), ("--ops", "reference"), ("--valid", tmp_path / "valid.png"),
        ("--window", "64x96"), ("--window", "64x96", "--overlap", "0.5"), ("--temperature", 2.0),
        ("--mean", "0,0,0"),
    ):  # fmt: skip
        assert (scored(*options), scored(*options)) == ("3", "0"), options
    assert scored() == "0"


def test_what_is_still_with_the_annotators_is_not_asked_again(ask: Ask, tmp_path: Path) -> None:
    options = ("-n", 6, "--strategy", "entropy")
    first, again = ask("a", *options), ask("b", *options)
    assert again.items == first.items
    second = ask("c", *options, "--exclude", tmp_path / "a")
    third = ask("d", *options, "--exclude", tmp_path / "a", "--exclude", tmp_path / "c")
    whole = ask("e", "-n", 18, "--strategy", "entropy")
    asked_for = [*first.items, *second.items, *third.items]
    assert [item.patch for item in asked_for] == [item.patch for item in whole.items]
    assert [asked.step for asked in (first, second, third)] == [1, 2, 3]


def test_masked_pixels_count_in_no_committee(ask: Ask, tmp_path: Path) -> None:
    valid = np.full((96, 192), 255, np.uint8)
    valid[60:] = 0  # half of the third row of patches
    Image.fromarray(valid).save(tmp_path / "valid.png")
    found = []
    for name, options in (("plain", ()), ("masked", ("--valid", tmp_path / "valid.png"))):
        given = ("-n", 96, "--strategy", "equal", "--model", "shard_networks:foreign", *options)
        items = ask(name, *given, ledger=f"{name}.parquet").items
        found.append({item.patch: (item.score, item.box.top) for item in items})
    plain, masked = found
    assert {top for patch, (score, top) in masked.items() if score != plain[patch][0]} == {48}


def test_a_pool_keeps_its_working_size(ask: Ask) -> None:
    options = ("-n", 1, "--strategy", "random")
    ask("a", *options, "--size", "48x96")
    ask("b", *options)  # left out: the pool's own
    with pytest.raises(ConfigError, match=r"4×4 over 48×96 pixels, but 4×4 over 24×48 was asked for"):
        ask("c", *options, "--size", "24x48")
