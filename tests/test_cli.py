"""The commands as a user calls them."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from meal_gpu import __version__, cli
from meal_gpu.config import Config
from meal_gpu.strategies import MEASURES, STRATEGIES

MEAL = [sys.executable, "-m", "meal_gpu"]


def call(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MEAL, *arguments], capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload, no-any-return]


def test_help_imports_no_torch() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['meal-gpu', '--help']\n"
        "try:\n    runpy.run_module('meal_gpu', run_name='__main__')\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'umap', 'nvidia.dali'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "active learning" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--dataset", "citiscapes"], "unknown dataset 'citiscapes'; known: synthetic, cityscapes"),
        (["run", "--preset", "x"], "unknown preset 'x'; known: camvid, camvid-finetune"),
        (["run", "--preset", "camvid", "--dataset", "cityscapes"], "is for camvid, but --dataset is city"),
        (["run", "--strategy", "meall"], "known: entropy, margin, "),
        (["run", "--size", "512"], "expected two numbers above 0"),
        (["run", "--set", "epocs=3"], "unknown key epocs; known: dataset, root"),
        (["run", "--set", "epochs=three"], "epochs is 'three'; expected int"),
        (["run", "--set", "epochs"], "expected KEY=VALUE"),
        (["run", "--set", "epochs=0"], "epochs is 0; it must be at least 1"),
        (["run", "--set", "cache_gib=.inf"], "cache_gib is inf; it must be finite"),
        (
            ["run", "--strategy", "random", "--set", "strategy=meal"],
            "strategy: given by its own option and by",
        ),
        (["run", "--frozen", "--seed", "1", "--set", "seed=2", "--set", "finetune=true"], "seed, finetune: "),
        (
            ["run", "--epochs", "1", "--set", "epochs=2", "--set", "final_epochs=3"],
            "epochs: given by its own",
        ),
        (["run", "--set", "dataset=camvid"], "--set dataset: use --dataset"),
        (["run", "--resume"], "--resume needs --out"),
        (["run", "--resume", "--out", "nowhere"], "nowhere holds no run"),
        (["run", "--resume", "--out", "x", "--preset", "camvid"], "leave out --preset and --config"),
        (["run", "--resume", "--out", "x", "--config", "y.toml"], "leave out --preset and --config"),
        (["run", "--ops", "cuda", "--device", "cpu"], "cannot work with device 'cpu': use --device cuda, or"),
        (["run", "--device", "gpu"], "device is 'gpu'; known: auto, cpu, cuda"),
        (["run", "--config", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (["run", "--encoder-weights", "nowhere.safetensors"], "nowhere.safetensors: no such weight file"),
        (["run", "--dataset", "cityscapes", "--root", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere holds no run"),
        (["run", "--seeds", "4..0"], "4..0 counts down; write 0..4"),
        (["run", "--seeds", "0..2", "--seed", "1"], "--seed 1 and --seeds 0..2 exclude each other"),
        (["run", "--strategy", "random,meall"], "unknown strategy 'meall'; known: "),
        (["run", "--strategy", "random,meal", "--jobs", "0"], "jobs is 0; it must be at least 1"),
        (["run", "--jobs", "2"], "--jobs is for a sweep: give --seeds, or several strategies"),
        (["run", "--seeds", "0..2", "--resume"], "--resume needs --out"),
        (["run", "--seeds", "0..2", "--resume", "--out", "nowhere"], "nowhere holds no sweep"),
        (["run", "--seeds", "0", "--set", "strategy=3"], "unknown strategy '3'; known: "),
        (["run", "--set", "strategy=3"], "strategy is 3; expected str"),
        (["run", "--seeds", "0", "--set", "epochs=0"], "epochs is 0; it must be at least 1"),
        (["run", "--seeds", "0", "--dataset", "cityscapes", "--root", "nowhere"], "nowhere"),
        (["run", "--track", "comet"], "unknown tracker 'comet'; known: tensorboard, wandb, mlflow"),
        (["run", "--seeds", "0", "--track", "comet"], "unknown tracker 'comet'; known: tensorboard"),
    ],
)
def test_mistakes_are_one_clear_line(arguments: list[str], words: str, scenes: Path, tmp_path: Path) -> None:
    if "--encoder-weights" in arguments:
        arguments = [*arguments, "--dataset", "cityscapes", "--root", str(scenes)]
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("epochs = 3\nbatch_size = 4\n", ["--strategy", "supervised"], (3, 4, 8e-4, 0)),
        ("strategy = 'supervised'\nlearning_rate = 0.5\n", [], (60, 2, 0.5, 0)),
        ("strategy = 'supervised'\nsteps = 2\n", ["--strategy", "random", "--set", "final_epochs=7"],
         (25, 8, 1e-3, 7)),
        ("epochs = 3\n", ["--strategy", "supervised", "--epochs", "5", "--set", "final_epochs=6"],
         (5, 2, 8e-4, 6)),
    ],
)  # fmt: skip
def test_the_baselines_own_settings_give_way_to_a_file_and_to_options(
    text: str, options: list[str], expected: tuple[object, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from meal_gpu import experiment

    (tmp_path / "c.toml").write_text(text)
    asked: list[Config] = []

    def run(config: Config, *given: object, **more: object) -> None:
        asked.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", run)
    monkeypatch.setattr(sys, "argv", ["meal-gpu", "run", "--config", str(tmp_path / "c.toml"), *options])
    with pytest.raises(SystemExit):
        cli.main()
    (found,) = asked
    assert (found.epochs, found.batch_size, found.learning_rate, found.final_epochs) == expected


@pytest.mark.parametrize("begun", [True, False])
def test_after_ctrl_c_only_a_run_that_began_is_to_be_continued(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from meal_gpu import experiment

    out = tmp_path / "my run"

    def run(config: Config, target: Path, **more: object) -> None:
        if begun:
            target.mkdir()
            (target / "config.toml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", run)
    monkeypatch.setattr(sys, "argv", ["meal-gpu", "run", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    again = f"complete steps are kept: meal-gpu run --out '{out}' --resume"
    told = f"meal-gpu: stopped; {again if begun else 'nothing was begun'}\n"
    assert (ended.value.code, capsys.readouterr().err) == (130, told)


def test_a_terminal_without_a_sign_stops_no_command() -> None:
    done = call("strategies", env=os.environ | {"PYTHONIOENCODING": "koi8-r"})
    assert done.returncode == 0, done.stderr
    assert "L?th et al." in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--ops", "cuda"],
            "meal-gpu: ops 'cuda' cannot work here: torch sees no NVIDIA GPU (check nvidia-smi and the "
            "driver). Use --ops reference meanwhile.",
        ),
        (["--device", "cuda"], "meal-gpu: device 'cuda': torch sees no GPU; use --device cpu"),
        (["--device", "cuda:1", "--ops", "cuda"], "device 'cuda:1': torch sees no GPU; use --device cpu"),
    ],
)
def test_what_cannot_be_had_without_a_gpu_is_one_clear_line(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    done = call("run", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", [[], ["--device", "cuda"]])
def test_a_gpu_without_cupy_says_what_to_install(
    device: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cupy" else find(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(sys, "argv", ["meal-gpu", "run", "--ops", "cuda", *device])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "meal-gpu: ops 'cuda' cannot work here: CuPy is not installed: pip install 'meal-gpu[cuda13]'. "
        "Use --ops reference meanwhile.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_run_report_and_resume(tiny: Config, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(tiny.replace(steps=1, strategy="entropy").to_toml())
    done = call("run", "--config", "tiny.toml", "--seed", "4", "--out", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "|    1 |       22 |" in done.stdout
    assert "step 1: 22 patches (22.92%)" in done.stderr
    assert (tmp_path / "r/report.html").is_file()
    again = call("run", "--out", "r", "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    other = call("run", "--out", "r", "--resume", "--seed", "5", cwd=tmp_path)
    assert "seed: 4 → 5" in other.stderr
    report = call("report", "r", "--out", "all.html", "--plot", "curve.svg", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert (tmp_path / "all.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "curve.svg").read_text().count("<svg") == 1


def test_ctrl_c_leaves_a_run_that_resumes(tiny: Config, tmp_path: Path) -> None:
    import signal

    (tmp_path / "tiny.toml").write_text(tiny.replace(strategy="random", epochs=200).to_toml())
    command = [*MEAL, "run", "--config", "tiny.toml", "--out", "r"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "r/config.toml").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "meal-gpu run --out r --resume" in errors
    assert "Traceback" not in errors


def test_data_commands(scenes: Path, tmp_path: Path) -> None:
    assert "cityscapes" in call("data", "list").stdout
    checked = call("data", "check", "cityscapes", "--root", str(scenes), "--size", "96x192", "--deep")
    assert (checked.returncode, "6 train and 2 val images, 0 problems" in checked.stdout) == (0, True)
    drawn = call("data", "draw", "tree", "--train", "1", "--val", "1", "--size", "48x96", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert "open it with --dataset cityscapes --root tree --size 48x96" in drawn.stdout
    label = next((tmp_path / "tree/gtFine/train").rglob("*labelIds.png"))
    label.write_bytes(b"not an image")
    broken = call("data", "check", "cityscapes", "--root", "tree", cwd=tmp_path)
    assert broken.returncode == 1
    assert label.name in broken.stdout
    packed = call(
        "data", "pack", "cityscapes", "--root", str(scenes), "--size", "96x192", "--out", "p", cwd=tmp_path
    )
    assert packed.returncode == 0, packed.stderr
    assert (tmp_path / "p/pack.json").is_file()


def test_doctor_and_strategies() -> None:
    told = call("doctor")
    assert told.returncode == 0, told.stderr
    assert "works   torch" in told.stdout
    assert told.stdout.splitlines()[0] == call("--version").stdout.strip() == f"meal-gpu {__version__}"
    assert "ops: " in told.stdout
    listed = [line.split()[0] for line in call("strategies").stdout.splitlines()]
    assert [name.removesuffix("*") for name in listed] == list(STRATEGIES)
    assert [name[:-1] for name in listed if name.endswith("*")] == list(MEASURES)
