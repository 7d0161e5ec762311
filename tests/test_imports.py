"""The house: imports point down, acquisition cannot reach labels, and importing costs nothing."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import meal_gpu

PACKAGE = Path(meal_gpu.__file__).parent
MODULES = {
    ".".join(("meal_gpu", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}

# Every unit may import units of earlier rows, and its own files. DESIGN.md section 4, one row finer.
ROWS = (
    ("errors",),
    ("rng", "timing", "grid", "config", "memory", "cache", "atomic", "lock", "cluster"),
    ("ops", "frame", "metrics", "images", "statistics"),
    ("ledger",),
    ("data", "models", "manifold", "convolution"),
    ("inference", "adapters", "strategies", "windowed", "patchwise", "checkpoint"),
    ("passes",),
    ("scoring", "oracle"),
    ("committee",),
    ("pool",),
    ("acquisition", "evaluate", "prediction", "calibration", "record"),
    ("savepoint",),
    ("train", "control", "footprint"),
    ("preparation", "tracking"),
    ("learner",),
    ("experiment", "report", "progress", "saying", "doctor", "annotate"),
    ("compare", "sweep", "trust", "options"),
    ("commands", "research", "integrations"),
    ("cli",),
    ("__main__",),
)
RANK = {unit: rank for rank, row in enumerate(ROWS) for unit in row}


def unit(module: str) -> str:
    return module.split(".")[1] if "." in module else "meal_gpu"


def imports(module: str, *, typing_too: bool = True) -> set[str]:
    """Modules that the source of `module` imports anywhere, as it names them."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    hidden: set[ast.AST] = set()
    if not typing_too:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                hidden |= set(ast.walk(node))
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            base = node.module or ""
            # `from meal_gpu import rng` names a module, `from meal_gpu.rng import stream` something in it
            names = [alias.name for alias in node.names if alias.name != "__version__"]
            found |= {f"{base}.{name}" if f"{base}.{name}" in MODULES else base for name in names}
    return found


def inside(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] == "meal_gpu"}


def test_every_module_has_its_place() -> None:
    assert {unit(name) for name in MODULES} <= {"meal_gpu", *RANK}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    if module == "meal_gpu":  # the public names, lazily
        return
    own = unit(module)
    for name in inside(module):
        other = unit(name)
        assert other == own or (other in RANK and RANK[other] < RANK[own]), f"{module} imports {name}"


def test_no_module_imports_itself_by_a_detour() -> None:
    # between units the rows forbid it; this also looks inside data, ops, strategies and report
    graph = {name: {m for m in inside(name) if m in MODULES and m != name} for name in MODULES}
    graph["meal_gpu"] = set()
    # the seam loads its implementations inside a function
    graph["meal_gpu.ops"] -= {"meal_gpu.ops.reference", "meal_gpu.ops.cpu", "meal_gpu.ops.cuda"}
    while free := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph


@pytest.mark.parametrize("module", sorted(MODULES))
def test_the_package_does_not_know_its_tests_and_benchmarks(module: str) -> None:
    outside = {name.split(".")[0] for name in imports(module)}
    assert not outside & {"tests", "bench", "pytest", "hypothesis", "conftest"}


def closure(module: str) -> set[str]:
    """`module` and all of the package that it imports, directly or not."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in MODULES:
            continue
        seen.add(name)
        waiting += inside(name) - {"meal_gpu"}
    return seen


@pytest.mark.parametrize(
    "module",
    sorted(
        name
        for name in MODULES
        if unit(name)
        in (
            "acquisition",
            "adapters",
            "convolution",
            "images",
            "inference",
            "scoring",
            "manifold",
            "passes",
            "ledger",
            "prediction",
            "strategies",
            "windowed",
        )
    ),
)
def test_acquisition_cannot_reach_labels(module: str) -> None:
    reached = {unit(name) for name in closure(module)}
    assert not reached & {"oracle", "data", "train", "evaluate", "preparation", "experiment"}


@pytest.mark.parametrize("vendor", ["cupy", "cuml", "cudf", "rmm", "umap", "nvidia", "sklearn", "matplotlib"])
def test_vendors_are_imported_inside_the_function_that_needs_them(vendor: str) -> None:
    for name, path in MODULES.items():
        top = ast.parse(path.read_text(encoding="utf-8")).body
        for node in top:
            if isinstance(node, ast.Import):
                assert vendor not in {alias.name.split(".")[0] for alias in node.names}, name
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != vendor, name


HEAVY = ("torch", "numpy", "pandas", "umap", "numba", "sklearn", "nvidia", "matplotlib", "rich.progress")


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import meal_gpu; dir(meal_gpu)", HEAVY),
        ("import meal_gpu.cli", ("torch", "numpy", "pandas", "umap", "numba", "nvidia", "matplotlib")),
        (
            "import meal_gpu.acquisition",
            ("umap", "numba", "cupy", "cuml", "cudf", "nvidia.dali", "matplotlib"),
        ),
    ],
)
def test_importing_costs_nothing_that_is_not_used(statement: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; print(*(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", meal_gpu.__all__)
def test_public_names_have_a_documented_home(name: str) -> None:
    assert getattr(import_module(meal_gpu._HOMES[name]), name).__doc__
    assert name in dir(meal_gpu)
    # what a type checker sees is what Python gives
    typed = {
        alias.name: node.module
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed[name] == meal_gpu._HOMES[name]


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = meal_gpu.nonsense


def test_files_stay_small() -> None:
    # DESIGN.md: at 350 lines they split
    assert {name for name, path in MODULES.items() if len(path.read_text().splitlines()) >= 350} == set()
    assert not [name for name in MODULES if name.endswith("utils")]
