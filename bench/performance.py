"""The README's section on speed, made from rows of results and nothing else."""

from pathlib import Path
from typing import Any

from bench import harness, results
from bench.results import Rows, figures, seconds

ROOT = Path(__file__).parent.parent
RESULTS = {
    device: tuple(ROOT / "bench" / "results" / name for name in names)
    for device, names in (
        ("cpu", ("cpu.jsonl",)),
        ("gpu", ("gpu.jsonl", "gpu-pool.jsonl", "gpu-acquisition.jsonl", "gpu-umap-learn.jsonl")),
    )
}
PLOTS = {device: ROOT / "docs" / f"bench-{device}.svg" for device in RESULTS}
STAGES = ("load", "network", "entropy", "features", "select", "fit", "transform", "choose")


LARGE = "large pool"  # cases of bench_scale.py, which docs/SCALE.md shows


def committed() -> dict[str, Rows]:
    """The rows by device, of those that were measured."""
    found = {
        device: [row for path in paths if path.is_file() for row in harness.read(path)]
        for device, paths in RESULTS.items()
    }
    return {device: rows for device, rows in found.items() if rows}


def section(found: dict[str, Rows]) -> str:
    """Markdown; `found` are the rows by device, of those that were measured."""
    parts = []
    if "gpu" not in found:
        parts.append(
            "**No GPU figures exist yet**: `bench/gpu_pass.sh` makes them in one go where there is a GPU."
        )
    parts += [_device(device, rows) for device, rows in found.items()]
    return "\n\n".join(parts)


def _device(device: str, rows: Rows) -> str:
    rows = [row for row in rows if not row["case"].startswith(LARGE)]
    first = rows[0]
    limits = first["limits"]
    matrix = ", ".join(f"{rate / 1e12:.2f} TFLOP/s in {name}" for name, rate in limits["matrix"].items())
    commits = ", ".join(sorted({str(row["commit"]) for row in rows}))
    blocks = [
        f"**{first['device']}**, {first['threads']} threads, commit {commits}, {first['time'][:10]}: "
        f"copies {limits['copy'] / 1e9:.0f} GB/s, multiplies matrices at {matrix}. Medians, "
        "with the 20th and 80th percentile in brackets. *Limit*: the share that is reached of what this "
        "device could do, by the count of bytes, operations and exponentials that binds.",
        _summary([row for row in rows if not row["over"] and row["case"] != "acquisition"]),
    ]
    for start in ("warm", "cold"):
        group = [r for r in rows if r["case"] == "acquisition" and r["sizes"]["start"] == start]
        if group:
            blocks.append(_acquisition(group))
    if growth := results.growth(rows):
        blocks.append(_growth(growth))
    blocks.append(
        f"![Every contender of every case]({PLOTS[device].relative_to(ROOT)})\n\n"
        f"Every row, with package versions and memory: `bench/results/{device}*.jsonl`."
    )
    return "\n\n".join(blocks)


def _summary(rows: Rows) -> str:
    """Ours, and the fastest of the others, of every case."""
    lines = []
    for (case, sizes), group in results.grouped(rows, lambda row: results.key(row)[:2]):
        ours = group[0]
        peers = [row for row in group if not row["contender"].startswith("ours")]
        best = min(peers, key=lambda row: row["median"], default=None)
        limit = f"{ours['share']:.0%} {ours['limit']}" if ours["share"] is not None else "–"
        lines.append([
            case.replace("_", " "), sizes, _spread(ours), limit,
            *(
                ("–", "–", "–") if best is None
                else (best["contender"], _spread(best), figures(best["median"] / ours["median"], 2))
            ),
        ])  # fmt: skip
    head = ["case", "sizes", "ours", "limit", "fastest of the others", "its time", "× ours"]
    return markdown(head, lines, "llrllrr")


def _spread(row: dict[str, Any]) -> str:
    rounds = "" if row["rounds"] >= 5 else f", {row['rounds']} rounds"
    return f"{seconds(row['median'])} ({seconds(row['p20'])} – {seconds(row['p80'])}{rounds})"


def _acquisition(group: Rows) -> str:
    """A row for each contender, with its stages."""
    sizes = group[0]["sizes"]
    start = {"warm": "Warm: the images lie on the device", "cold": "Cold: from JPEG files"}[sizes["start"]]
    names = [name for name in STAGES if any(name in row["extra"]["stages"] for row in group)]
    ours = group[0]
    lines = []
    for row in group:
        stages = row["extra"]["stages"]
        lines.append([
            row["contender"], f"{row['median']:.2f}", f"{row['p20']:.2f} – {row['p80']:.2f}",
            f"{row['median'] / ours['median']:.2f}", f"{row['cpu']:.2f}", f"{row['cpu'] / ours['cpu']:.2f}",
            *(f"{stages[name]:.2f}" if name in stages else "–" for name in names),
            str(row["extra"]["float32 candidates"]),
        ])  # fmt: skip
    head = ["", "seconds", "p20 – p80", "× ours", "core seconds", "× ours", *names, "of float32's 200"]
    again = ours["extra"]["chosen again"]
    return (
        f"**A whole first query** of {sizes['images']:,} images of {sizes['height']}×{sizes['width']} "
        f"({16 * sizes['images']:,} patches; 200 candidates, 32 chosen). {start}. Seconds; each stage is a "
        "median by itself.\n\n"
        f"{markdown(head, lines, 'l' + 'r' * (len(head) - 1))}\n\n"
        "Without what is compiled once in a process, of which UMAP's part takes some ten seconds and more. "
        "The last column counts the candidates that the same network in float32 proposes too. Given the same "
        f"embedding, the reference ops choose {again} of our 32 in the same order."
    )


def _growth(found: list[results.Growth]) -> str:
    lines = [
        [
            each.case.removeprefix("scaling, "), each.over,
            f"{each.sizes[0]:,} – {each.sizes[-1]:,}",
            f"{seconds(each.medians[0])} – {seconds(each.medians[-1])}",
            f"{each.time:.2f}",
            results.size_of(each.peaks[-1]),
            "–" if each.memory is None else f"{each.memory:.2f}",
        ]
        for each in found
    ]  # fmt: skip
    head = [
        "cost of",
        "grows with",
        "from – to",
        "time",
        "time's exponent",
        "memory at the end",
        "its exponent",
    ]
    return f"**Growth**, the exponents between the two largest sizes:\n\n{markdown(head, lines, 'llrrrrr')}"


def markdown(head: list[str], lines: list[list[str]], align: str) -> str:
    """A table; `align` has l or r for each column."""
    rules = ["--:" if side == "r" else "---" for side in align]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rules, *lines])
