"""What is concluded: by hand, with effects that are known, and with none."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from made_runs import curve
from scipy import stats

from meal_gpu.compare import Comparison, compare, verdict, winner
from meal_gpu.compare.runs import Curve, group
from meal_gpu.compare.verdict import notes
from meal_gpu.errors import ConfigError, InputError, RunError

NAN = math.nan
EFFECT = {"random": 0.0, "entropy": 0.02, "meal": 0.05, "meal-ft": 0.12}


def simulate(effect: dict[str, float], seeds: int, generator: np.random.Generator) -> list[Curve]:
    """Five steps. A seed lifts or lowers all strategies; each run and each step scatter by themselves."""
    curves = []
    of_seed = generator.normal(0, 0.02, seeds)
    for strategy, gain in effect.items():
        for seed in range(seeds):
            own = generator.normal(0, 0.004) + generator.normal(0, 0.004, 5)
            scores = 0.3 + 0.04 * np.arange(5) + gain + of_seed[seed] + own
            curves.append(curve(strategy, seed, scores))
    return curves


def table(effect: dict[str, float], seeds: int = 5, **options: object) -> Comparison:
    return compare(group(simulate(effect, seeds, np.random.default_rng(0))), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seeds", [3, 5])
def test_without_an_effect_nobody_wins(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    drawn = [compare(group(simulate(dict.fromkeys(EFFECT, 0.0), seeds, generator))) for _ in range(100)]
    assert sum(winner(comparison) is None for comparison in drawn) >= 95
    assert sum("No winner can be named" in verdict(comparison) for comparison in drawn) >= 95
    # Holm: in at most 5 % of the families is any pair found; 10 of 100 is two standard deviations above
    assert sum(any(pair.better for pair in comparison.pairs) for comparison in drawn) <= 10


@pytest.mark.parametrize(("seeds", "gain"), [(3, 0.25), (5, 0.06)])
def test_an_effect_is_found_in_nearly_all_draws(seeds: int, gain: float) -> None:
    generator = np.random.default_rng(seeds)
    effect = dict.fromkeys(EFFECT, 0.0) | {"meal": gain}
    found = [winner(compare(group(simulate(effect, seeds, generator)))) for _ in range(100)]
    assert found.count("meal") >= 95
    assert set(found) <= {"meal", None}


def test_a_winner_is_named_with_what_makes_it_one() -> None:
    comparison = table(EFFECT)
    assert winner(comparison) == "meal-ft"
    assert verdict(comparison) == (
        "meal-ft wins: its area under the budget curve is above every other, each with a corrected p below "
        "0.05 and a 95% interval of the difference without zero (5 shared seeds)."
    )


@pytest.mark.parametrize("leader", ["a", "z"])
def test_an_open_difference_is_told_from_the_leader(leader: str) -> None:
    scores = {leader: [[0.3, 0.5], [0.4, 0.4]], "m": [[0.2, 0.3], [0.5, 0.4]]}
    comparison = compare(group([curve(s, k, x) for s, y in scores.items() for k, x in enumerate(y)]))
    half = float(stats.t.ppf(0.975, df=1)) * 0.1  # the areas differ by 0.15 and -0.05
    assert verdict(comparison) == (
        f"No winner can be named: {leader} has the highest mean area, but m: the 95% interval of the "
        f"difference, {0.05 - half:.4f} to {0.05 + half:.4f}, includes zero."
    )


def test_areas_and_pairs_by_hand_and_scipy() -> None:
    a = [[0.2, 0.4, 0.5], [0.3, 0.4, 0.6], [0.1, 0.5, 0.5]]
    b = [[0.1, 0.3, 0.3], [0.2, 0.2, 0.5], [0.2, 0.3, 0.2]]
    comparison = compare(group([curve(s, k, x) for s, y in (("a", a), ("b", b)) for k, x in enumerate(y)]))
    first, second = comparison.summaries
    # equal steps: (x0 + 2 x1 + x2) / 4
    assert first.areas == pytest.approx([0.375, 0.425, 0.4])
    assert second.areas == pytest.approx([0.25, 0.275, 0.25])
    assert (comparison.low, comparison.high) == (0.02, 0.06)
    assert first.final.mean == pytest.approx(1.6 / 3)
    assert first.last_epoch.mean == pytest.approx(1.6 / 3 - 0.02)
    # with a query are two steps: 0.4 > 0.3, 0.4 > 0.2, 0.5 > 0.3, and the last
    assert comparison.penalty.steps == 2
    assert comparison.penalty.matrix is not None
    beats = [stats.ttest_rel([x[k] for x in a], [x[k] for x in b]).pvalue < 0.05 for k in (1, 2)]
    assert comparison.penalty.matrix.tolist() == [[0, np.mean(beats)], [0, 0]]
    assert [interval.mean for interval in first.class_iou] == pytest.approx([1.6 / 3 + 0.1, 1.6 / 3 - 0.1])
    (pair,) = comparison.pairs
    expected = stats.ttest_rel(first.areas, second.areas)
    assert pair.test is not None
    assert pair.test.difference == pytest.approx(0.425 / 3)
    assert pair.test.p == pair.corrected == pytest.approx(expected.pvalue)
    assert pair.better == "a"


def test_the_order_of_the_runs_changes_nothing() -> None:
    curves = simulate(EFFECT, 4, np.random.default_rng(1))
    expected = compare(group(curves))
    shuffled = curves.copy()
    for k in range(5):
        random.Random(k).shuffle(shuffled)
        found = compare(group(shuffled))
        assert (found.pairs, verdict(found)) == (expected.pairs, verdict(expected))
        assert [s.area for s in found.summaries] == [s.area for s in expected.summaries]
        assert found.penalty.matrix is not None
        assert expected.penalty.matrix is not None
        assert found.penalty.matrix.tolist() == expected.penalty.matrix.tolist()


def test_every_interval_has_the_level_asked_for() -> None:
    curves = simulate(EFFECT, 4, np.random.default_rng(1))
    narrow, wide = (compare(group(curves), level=level) for level in (0.5, 0.95))
    ratio = float(stats.t.ppf(0.75, df=3) / stats.t.ppf(0.975, df=3))
    for one, other in zip(narrow.summaries, wide.summaries, strict=True):
        intervals = [(s.area, s.final, s.last_epoch, *s.score[1:], *s.class_iou) for s in (one, other)]
        for a, b in zip(*intervals, strict=True):
            assert a.high - a.low == pytest.approx(ratio * (b.high - b.low))
    for first, second in zip(narrow.pairs, wide.pairs, strict=True):
        assert first.test is not None and second.test is not None
        assert first.test.high - first.test.low == pytest.approx(ratio * (second.test.high - second.test.low))


def test_the_penalty_matrix_is_of_the_seeds_that_all_have() -> None:
    """b is far below a in the seeds 1 to 3, which both have, and far above in the seed 0 of its own."""
    a = [curve("a", seed, [0.2, 0.5 + seed / 100]) for seed in (1, 2, 3)]
    b = [curve("b", seed, [0.2, 0.9 if not seed else 0.4 + seed / 90]) for seed in range(4)]
    penalty = compare(group([*a, *b])).penalty
    assert penalty.seeds == (1, 2, 3)
    assert penalty.matrix is not None
    assert penalty.matrix.tolist() == [[0, 1], [0, 0]]


def test_one_seed_is_refused() -> None:
    comparison = table(EFFECT, seeds=1)
    assert all(pair.test is None and pair.reason == "no test: 1 shared seed" for pair in comparison.pairs)
    assert comparison.penalty.matrix is None
    assert winner(comparison) is None
    assert verdict(comparison).startswith("Nothing can be concluded: no two strategies share two seeds")
    assert "One seed, hence no interval: entropy; meal; meal-ft; random." in list(notes(comparison))


def test_pairs_are_tested_on_the_seeds_that_both_have() -> None:
    curves = simulate({"a": 0.0, "b": 0.2}, 5, np.random.default_rng(0))
    comparison = compare(
        group([c for c in curves if (c.config.strategy, c.config.seed) not in {("a", 0), ("b", 4)}])
    )
    (pair,) = comparison.pairs
    assert pair.seeds == (1, 2, 3)
    areas = {s.label: dict(zip(s.group.seeds, s.areas, strict=True)) for s in comparison.summaries}
    expected = stats.ttest_rel(*([areas[name][k] for k in (1, 2, 3)] for name in "ab"))
    assert pair.test is not None
    assert pair.test.p == pytest.approx(expected.pvalue)
    said = list(notes(comparison))
    assert (
        "The seeds differ (a 1, 2, 3, 4; b 0, 1, 2, 3): a pair is tested on the seeds that both have." in said
    )
    two = compare(group([c for c in curves if c.config.seed < (2 if c.config.strategy == "a" else 4)]))
    assert any(note.startswith("Two shared seeds leave one degree of freedom") for note in notes(two))


@pytest.mark.parametrize(("steps", "said"), [(2, False), (3, True)])
def test_runs_that_stopped_early_all_of_them_are_named(steps: int, said: bool) -> None:
    curves = [curve(name, k, [0.1, 0.2 + k / 50, 0.9], steps=steps) for name in "ab" for k in range(2)]
    (told,) = [note for note in notes(compare(group(curves))) if note.startswith("Not finished")] or [""]
    expected = ", ".join(f"{one.name} (step 2 of 3)" for one in curves)
    assert told == (f"Not finished, `--resume` goes on with them: {expected}." if said else "")


def test_a_pool_that_is_labelled_whole_is_finished() -> None:
    curves = [curve(name, k, [0.1, 0.2, 0.9], steps=30) for name in "ab" for k in range(2)]
    whole = [replace(one, patches=one.labelled[-1]) for one in curves]
    assert not any(note.startswith("Not finished") for note in notes(compare(group(whole))))


def test_runs_of_several_lengths_are_compared_on_common_steps() -> None:
    long = [curve("a", k, [0.1, 0.2 + k / 50, 0.9], steps=2, final_epochs=40) for k in range(3)]
    short = [curve("b", k, [0.1, 0.3 + k / 90], steps=1, final_epochs=40) for k in range(3)]
    comparison = compare(group([*long, *short]))
    first, second = comparison.summaries
    assert (first.label, second.label) == ("a (steps=2)", "b (steps=1)")
    assert first.labelled == second.labelled == (32, 64)
    assert first.final.mean == pytest.approx(0.22)
    said = list(notes(comparison))
    assert "The runs have 2 or 3 steps: compared are steps 0 to 1, which all have." in said
    assert any("Step 1 is the last of some runs" in note for note in said)


def test_a_verdict_says_what_was_cut() -> None:
    long = [curve("a", k, [0.1, 0.2 + k / 500, 0.9]) for k in range(3)]
    short = [curve("b", k, [0.1, 0.1 + k / 900]) for k in range(3)]
    assert verdict(compare(group([*long, *short]))).startswith(
        "On steps 0 to 1 alone, all there is of b: a wins: its area under the budget curve"
    )
    slow = [curve("b", k, [0.1, 0.1 + k / 900], [32, 48]) for k in range(3)]
    assert verdict(compare(group([*long, *slow]))).startswith(
        "On 2.00% to 3.00% of the pool labelled, which all have: a wins: "
    )
    same = [curve("b", k, [0.1, 0.1 + k / 900, 0.1]) for k in range(3)]
    assert verdict(compare(group([*long, *same]))).startswith("a wins: ")


@pytest.mark.parametrize(
    ("labelled", "first"),
    [
        ([32], "On step 0 alone, all there is of b: Nothing can be concluded: the strategies have 2.00%"),
        ([96], "On 6.00% to 6.00% of the pool labelled, which all have: Nothing can be concluded: "),
    ],
)
def test_where_a_strategy_has_queried_nothing_there_is_no_verdict(labelled: list[int], first: str) -> None:
    long = [curve("a", k, [0.3 + k / 500, 0.5, 0.9 + k / 500]) for k in range(3)]
    short = [curve("b", k, [0.1], labelled) for k in range(3)]
    comparison = compare(group([*long, *short]))
    assert verdict(comparison).startswith(first)
    assert winner(comparison) is None
    (pair,) = comparison.pairs
    assert (pair.test, pair.reason[:14]) == (None, "no test: only ")
    assert comparison.penalty.matrix is None
    drawn = compare(group([curve(name, k, [0.1 + k / 90]) for name in "ab" for k in range(3)]))
    assert verdict(drawn).startswith("Nothing can be concluded: the strategies have 2.00%")


def test_the_family_is_the_tests_that_were_made() -> None:
    curves = simulate({"a": 0.0, "b": 0.03, "c": 0.05}, 4, np.random.default_rng(0))
    two = compare(group(curves[4:]))
    curves[0].score[1] = NAN  # of a: of three pairs one can be tested
    three = compare(group(curves))
    made = [pair for pair in three.pairs if not pair.reason]
    assert [(pair.first, pair.second) for pair in made] == [("b", "c")]
    assert made[0].test is not None
    assert made[0].corrected == made[0].test.p == two.pairs[0].corrected
    assert all(math.isnan(pair.corrected) for pair in three.pairs if pair.reason)


def test_strategies_that_label_at_another_pace_are_compared_on_common_budgets() -> None:
    fast = [curve("a", k, [0.2, 0.4 + k / 50, 0.8], [32, 96, 160], query_size=64) for k in range(3)]
    slow = [curve("b", k, [0.2, 0.3, 0.4 + k / 90], [32, 64, 128], query_size=32) for k in range(3)]
    comparison = compare(group([*fast, *slow]))
    assert (comparison.low, comparison.high) == (0.02, 0.08)
    assert comparison.summaries[0].final.mean == pytest.approx((0.42 + 0.8) / 2)  # at 128, between 96 and 160
    assert comparison.penalty.reason == "the strategies label at another pace"
    assert any("between 2.00% and 8.00% of the pool" in note for note in notes(comparison))
    apart = curve("c", 0, [0.1, 0.2], [200, 300])
    with pytest.raises(RunError, match=r"ends with 8.00% of the pool labelled and c begins with 12.50%"):
        compare(group([*slow, apart]))


def test_the_supervised_run_of_the_same_network_is_the_reference() -> None:
    learned = [curve("a", k, [0.1, 0.3, 0.5 + k / 10]) for k in range(2)]
    full = [curve("supervised", k, [0.5 + k / 10], [100]) for k in range(2)]
    (summary,) = compare(group([*learned, *full])).summaries
    assert summary.supervised == pytest.approx(0.55)
    assert summary.relative is not None
    assert summary.relative.mean == pytest.approx(1)
    # 95 %: 0.5225, between 0.3 at 4 % and 0.55 at 6 %; one seed ends at 0.5
    assert summary.budget == pytest.approx(0.04 + 0.02 * 0.2225 / 0.25)
    assert summary.reached == 1
    for change in ({"encoder_weights": "none"}, {"architecture": "paper"}, {"finetune": True}):
        other = [curve("supervised", 0, [0.6], [100], **change)]
        comparison = compare(group([*learned, *other]))
        assert comparison.summaries[0].supervised is None
    assert any(note.startswith("No supervised run fits a (architecture") for note in notes(comparison))
    alike = "The supervised run for a has another"
    assert not any(note.startswith(alike) for note in notes(compare(group([*learned, *full]))))
    rounded = [curve("supervised", 0, [0.6], [100], precision="bfloat16", keep="last", epochs=60)]
    found = list(notes(compare(group([*learned, *rounded]))))
    assert f"{alike} precision, another keep." in found
    with pytest.raises(ConfigError, match="supervised runs of one network"):
        group([*learned, *full, curve("supervised", 0, [0.6], [100], epochs=7)])


def test_an_unknown_score_is_carried_and_said() -> None:
    curves = simulate(EFFECT, 3, np.random.default_rng(0))
    curves[0].score[1] = NAN  # of random, seed 0
    comparison = compare(group(curves))
    lost = comparison.summaries[-1]
    assert lost.label == "random"
    assert math.isnan(lost.area.mean)
    assert math.isnan(lost.score[1].mean)
    assert not math.isnan(lost.final.mean)
    assert winner(comparison) is None
    assert "random: no test: an mIoU is NaN" in verdict(comparison)
    assert "The mIoU of random-0 is NaN at step 1" in " ".join(notes(comparison))
    everywhere = [curve(name, k, [NAN, 0.5]) for name in "ab" for k in range(3)]
    assert (
        verdict(compare(group(everywhere))) == "Nothing can be concluded: an mIoU of every strategy is NaN."
    )


def test_a_copy_of_a_seed_is_not_taken_for_an_effect() -> None:
    comparison = compare(
        group([curve(name, k, [0.1, 0.3 + (name == "a") / 10]) for name in "ab" for k in range(3)])
    )
    assert winner(comparison) is None
    assert "b: no test: the difference is the same for every seed" in verdict(comparison)


def test_a_baseline_needs_fewer_tests() -> None:
    every, some = table(EFFECT), table(EFFECT, baseline="random")
    assert [(pair.first, pair.second) for pair in some.pairs] == [
        ("entropy", "random"), ("meal", "random"), ("meal-ft", "random"),
    ]  # fmt: skip
    full = {(pair.first, pair.second): pair for pair in every.pairs}
    assert all(pair.test == full[pair.first, pair.second].test for pair in some.pairs)
    assert all(pair.corrected <= full[pair.first, pair.second].corrected for pair in some.pairs)
    assert winner(some) is None  # the others are not tested against each other
    assert verdict(some).startswith(
        "Against the baseline random: Shown: entropy is above random (corrected p"
    )
    null = verdict(table(dict.fromkeys(EFFECT, 0.0), baseline="random"))
    assert null.startswith(
        "Against the baseline random: Not shown: entropy: the 95% interval of the difference"
    )
    with pytest.raises(
        ConfigError, match="baseline 'x' is not among the runs; known: entropy, meal, meal-ft"
    ):
        table(EFFECT, baseline="x")
    twice = [curve("a", 0, [0.1], finetune=value) for value in (True, False)]
    with pytest.raises(ConfigError, match=r"could be any of: a \(finetune=False\); a \(finetune=True\)"):
        compare(group(twice), baseline="a")
    assert compare(group(twice), baseline="a (finetune=True)").baseline == "a (finetune=True)"
    most = [*twice, curve("b", 0, [0.1], finetune=False)]  # so that one group is called "a"
    assert compare(group(most), baseline="a").baseline == "a"


def test_one_strategy_and_wrong_levels() -> None:
    assert "there is one strategy" in verdict(table({"a": 0.0}))
    with pytest.raises(InputError, match="level is 95"):
        table({"a": 0.0}, level=95)
