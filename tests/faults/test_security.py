"""Files of strangers run no code, and names stay names."""

import ast
import http.server
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from meal_gpu import cli, config, models
from meal_gpu.annotate.asked import Asked
from meal_gpu.checkpoint import load_weights
from meal_gpu.data.transfer import fetch
from meal_gpu.errors import ConfigError, DataError, MealGpuError, UnavailableError
from meal_gpu.images.listing import list_images
from meal_gpu.manifold import Manifold

fault = pytest.mark.fault
ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "meal_gpu").rglob("*.py"), *(ROOT / "bench").glob("*.py")])

# Calls that run what a file or a string says, or may; arguments that make them safe
FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "joblib.load",
    "marshal.load", "marshal.loads", "shelve.open", "dill.load", "dill.loads", "pd.read_pickle", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "os.popen", "tempfile.mktemp",
    "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter",
}  # fmt: skip


def unsafe(source: str) -> list[str]:
    """Calls in Python source that could run code of a file, or of a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        bad = (
            name in FORBIDDEN
            or (name == "torch.load" and given.get("weights_only") != "True")
            or (name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False")
            or given.get("shell", "False") != "False"
            or given.get("trust_remote_code", "False") != "False"
        )
        if bad:
            found.append(f"line {node.lineno}: {name}")
    return found


@pytest.mark.parametrize(
    "code",
    [
        "pickle.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)", "yaml.load(f)", "eval(text)", "subprocess.run(c, shell=True)",
        "from_pretrained(m, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_what_is_looked_for_is_found(code: str) -> None:
    assert len(unsafe(f"def f():\n    return [{code}]")) == 1


@fault("security", "code that unpickles, evaluates or calls a shell", "a test over the source finds none")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_here_runs_what_a_file_says(source: Path) -> None:
    assert unsafe(source.read_text(encoding="utf-8")) == []


class Malice:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


@fault("security", "a pickle that is called .safetensors", "named as unreadable; nothing runs")
def test_a_pickle_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps({"weight": Malice(tmp_path / "trace")}))
    with pytest.raises(ConfigError, match=r"weights\.safetensors: not a readable \.safetensors file"):
        load_weights(nn.Linear(2, 2), path)
    assert not (tmp_path / "trace").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "trace").exists()  # it was no blank cartridge


@fault(
    "security",
    "a .safetensors file whose header claims 2^62 bytes",
    "named; nothing of that size is allocated",
)
def test_a_forged_header(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ConfigError, match="not a readable"):
        load_weights(nn.Linear(2, 2), path)


@fault("security", "a TorchScript archive as `--checkpoint`", "refused, with the call that converts it")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_torchscript_archive(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.jit.script(nn.Linear(2, 2)).save(str(path))
    with pytest.raises(ConfigError, match=r"weights\.pt: holds more than tensors"):
        load_weights(nn.Linear(2, 2), path)


@fault("security", "a pickle in place of Φ, or of a step's weights, in a run folder", "named; nothing runs")
def test_files_of_a_run_folder_run_nothing(tmp_path: Path) -> None:
    path = tmp_path / "umap.safetensors"
    path.write_bytes(pickle.dumps(Malice(tmp_path / "trace")))
    with pytest.raises(MealGpuError, match=r"umap\.safetensors"):
        Manifold.load(path)
    network = models.Builder("smp", 3, "none")(0)
    with pytest.raises(MealGpuError, match=r"umap\.safetensors"):
        models.load(network, path)
    assert not (tmp_path / "trace").exists()


@fault(
    "security",
    "a config file that names code to run",
    "refused: no key does; `--model` alone runs code, and says so",
)
def test_only_the_model_option_runs_code(tmp_path: Path) -> None:
    hostile = tmp_path / "settings.yaml"
    hostile.write_text(f"!!python/object/apply:pathlib.Path.touch [{tmp_path / 'trace'}]")
    with pytest.raises(ConfigError, match=r"settings\.yaml: not valid YAML"):
        config.read(hostile)
    hostile.write_text("model: os:system\n")
    with pytest.raises(ConfigError, match="unknown key model"):
        config.read(hostile)
    with pytest.raises(ConfigError, match="architecture is 'os:system'"):
        config.from_dict({"architecture": "os:system"})
    assert not (tmp_path / "trace").exists()
    said = CliRunner().invoke(cli.app, ["acquire", "--help"], env={"COLUMNS": "200"}).output
    assert "This, and only this, runs code" in said


class Redirect(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", "file:///etc/hostname")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def redirecting() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Redirect) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/data.zip"
        server.shutdown()
        thread.join()


@fault("security", "a download that is redirected to a local file", "refused; the file is not read")
def test_a_redirect_to_a_file(redirecting: str, tmp_path: Path) -> None:
    with pytest.raises((UnavailableError, DataError), match=r"data\.zip"):
        fetch(redirecting, tmp_path / "data.zip", pause=0.001)
    assert not (tmp_path / "data.zip").exists()


def query(tmp_path: Path, name: str) -> Path:
    """A query over frames, one of which is called `name` by its manifest."""
    from data_samples import random_image
    from PIL import Image

    files = []
    for number in range(2):
        files.append(str(tmp_path / f"frame{number}.png"))
        Image.fromarray(random_image((64, 64), number)).save(files[-1])
    table = pd.DataFrame({"path": files, "name": ["plain.png", name]})
    table.to_parquet(tmp_path / "manifest.parquet", index=False)
    result = CliRunner().invoke(
        cli.app,
        ["acquire", "--images", str(tmp_path / "manifest.parquet"), "--model", "meal_gpu.models:segmenter",
         "--model-arg", "classes=3", "--strategy", "random", "-n", "100%", "--grid", "1x1",
         "--ledger", str(tmp_path / "pool.parquet"), "--out", str(tmp_path / "query")],
    )  # fmt: skip
    if result.exit_code:
        raise result.exception or RuntimeError(result.output)
    return tmp_path / "query"


@pytest.mark.parametrize("form", ["cvat", "coco", "label-studio", "segmentation-mask", "csv"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "../../outside.png",
            marks=fault("security", "a frame called `../../x.png`", "refused, or kept inside the folder"),
        ),
        pytest.param(
            "/tmp/absolute.png",
            marks=fault("security", "a frame called `/tmp/x.png`", "refused, or kept inside the folder"),
        ),
    ],
)  # fmt: skip
def test_names_never_lead_out_of_an_export(name: str, form: str, tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    before = set(Path("/tmp").glob("absolute*"))
    try:
        CliRunner().invoke(
            cli.app,
            ["export", "--query", str(query(inside, name)), "--to", form],
        )
    except MealGpuError as error:
        assert name in str(error)
    assert {p.name for p in tmp_path.iterdir()} == {"a"}
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"b"}
    assert set(Path("/tmp").glob("absolute*")) == before


@fault(
    "security", "a manifest that names a file twice, or one that is no image", "named with its row or file"
)
def test_a_manifest_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    pd.DataFrame({"path": ["secret.txt"], "name": ["a.png"]}).to_parquet(tmp_path / "m.parquet")
    listing = list_images(str(tmp_path / "m.parquet"))
    from meal_gpu.images.headers import image_size

    with pytest.raises(DataError, match=r"secret\.txt: not a readable image"):
        image_size(Path(listing.files[0]))


@fault("security", "a token for `--push` when the server cannot be reached", "in no error and no file")
@pytest.mark.parametrize("to", ["cvat", "label-studio"])
def test_a_token_is_never_shown(to: str, tmp_path: Path) -> None:
    folder = query(tmp_path, "second.png")
    result = CliRunner().invoke(
        cli.app,
        ["export", "--query", str(folder), "--to", to, "--push", "http://127.0.0.1:9",
         "--token", "s3cr3t-t0ken"],
    )  # fmt: skip
    assert result.exit_code == 1
    assert "s3cr3t-t0ken" not in f"{result.output} {result.exception}"
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"s3cr3t-t0ken" in p.read_bytes()]
    assert len(Asked.read(folder).items) == 2


@fault("security", "an array file of a pack that holds pickled objects", "named; nothing runs")
def test_a_pack_of_objects(tmp_path: Path) -> None:
    from meal_gpu import data
    from meal_gpu.data import synthetic

    synthetic.write(tmp_path / "tree", train=1, val=1, size=(32, 64), seed=0)
    pack = data.pack(data.open_dataset("cityscapes", tmp_path / "tree", size=(32, 64)), tmp_path / "pack")
    np.save(
        pack / "train.images.npy", np.array([Malice(tmp_path / "trace")], dtype=object), allow_pickle=True
    )
    opened = data.open_dataset("cityscapes", pack)
    with pytest.raises(DataError, match=r"train\.images\.npy"):
        data.load_images(opened.train, opened.size)
    assert not (tmp_path / "trace").exists()


def test_tensors_alone_are_read(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    load_weights(nn.Linear(2, 2), tmp_path / "w.safetensors")
