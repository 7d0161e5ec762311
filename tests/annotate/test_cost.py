"""What labelling costs, budgets in every unit, and packing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meal_gpu.annotate.asked import Box, Item
from meal_gpu.annotate.budget import Budget, packed
from meal_gpu.annotate.cost import CostModel, regions
from meal_gpu.errors import ConfigError


def item(image: str, clicks: float, seconds: float) -> Item:
    return Item(0, image, image, Box(0, 0, 1, 1), 1.0, clicks, seconds)


def test_clicks_follow_the_boundary() -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 30:] = 1  # one boundary of 40 pixel edges between two regions
    model = CostModel(vertex=4)
    assert model.clicks(mask) == pytest.approx(np.pi / 4 * 40 / 4)
    assert CostModel(vertex=100).clicks(mask) == 6  # at least three for each region
    mask[:, 29:31] = 255  # void parts them: nothing is drawn there
    assert model.clicks(mask) == 6
    assert model.clicks(np.full((4, 4), 255, np.uint8)) == 0


def test_a_circle_is_as_long_as_it_is() -> None:
    y, x = np.mgrid[:401, :401]
    disk = ((x - 200) ** 2 + (y - 200) ** 2 < 150**2).astype(np.uint8)
    assert CostModel(vertex=1).clicks(disk) == pytest.approx(2 * np.pi * 150, rel=0.01)


def test_regions_are_four_connected() -> None:
    assert regions(np.array([[0, 1], [1, 0]], np.uint8)) == 4
    assert regions(np.array([[0, 0], [1, 0]], np.uint8)) == 2
    assert regions(np.array([[255, 255], [1, 255]], np.uint8)) == 1


def test_a_frame_is_opened_once() -> None:
    totals = CostModel(frame=20).totals([item("a", 2, 10), item("b", 3, 10), item("a", 4, 10)])
    assert totals.clicks.tolist() == [2, 5, 9]
    assert totals.frames.tolist() == [1, 2, 2]
    assert (totals.hours * 3600).round(6).tolist() == [30, 60, 70]


def test_costs_are_parsed() -> None:
    assert CostModel.parse("") == CostModel()
    assert CostModel.parse("click=1.1, frame=8") == CostModel(click=1.1, frame=8)
    for wrong, words in (
        ("click", "expected NAME=SECONDS"),
        ("klick=1", "'klick' is unknown; known: patch, click, frame, vertex"),
        ("click=-1", "at least 0"),
        ("vertex=0", "above 0"),
        ("frame=inf", "at least 0"),
        ("frame=nan", "at least 0"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            CostModel.parse(wrong)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [("32", 32, "patches"), ("32patches", 32, "patches"), ("2%", 2, "%"), ("0.5 %", 0.5, "%"),
     ("5000clicks", 5000, "clicks"), ("6h", 6, "hours"), ("1.5 hours", 1.5, "hours")],
)  # fmt: skip
def test_budgets_are_parsed(text: str, amount: float, unit: str) -> None:
    assert Budget.parse(text) == Budget(amount, unit)


@pytest.mark.parametrize("text", ["", "-3", "0", "3.5patches", "6 weeks", "101%", "1e3", "nan", "h"])
def test_impossible_budgets_are_errors(text: str) -> None:
    with pytest.raises(ConfigError, match="budget"):
        Budget.parse(text)


def test_a_budget_buys_what_it_pays_for() -> None:
    totals = CostModel(frame=20).totals([item("a", 2, 10), item("b", 3, 10), item("a", 4, 10)])
    assert [Budget(n, "clicks").cut(totals) for n in (1.9, 2, 4.9, 5, 9, 100)] == [0, 1, 1, 2, 3, 3]
    assert [Budget(s / 3600, "hours").cut(totals) for s in (29, 30, 60, 70)] == [0, 1, 2, 3]
    assert Budget(2, "%").patches(5872) == 117
    assert Budget(0.001, "%").patches(100) == 1
    assert Budget(7, "patches").patches(5) == 7
    assert Budget(7, "clicks").patches(5) is None


@given(st.integers(1, 500), st.sampled_from(["clicks", "hours"]), st.sampled_from([0.0, 1.5]))
def test_no_budget_buys_more_than_its_most(amount: int, unit: str, click: float) -> None:
    model, budget = CostModel(patch=0 if click else 5, click=click, frame=0), Budget(amount / 60, unit)
    cheapest = item("a", model.clicks(np.zeros((9, 9), np.uint8)), model.seconds(3))
    assert cheapest.clicks == 3
    assert budget.cut(model.totals([cheapest] * 9000)) <= budget.most(model) < 9000
    assert Budget(6, "hours").most(CostModel(patch=0, click=0)) == np.inf


def test_packing_takes_blocks_of_a_frame() -> None:
    images = np.array([5, 7, 5, 9, 5, 7])
    assert packed(images, 1).tolist() == [0, 1, 2, 3, 4, 5]
    assert packed(images, 2).tolist() == [0, 2, 1, 5, 3, 4]
    assert packed(images, 9).tolist() == [0, 2, 4, 1, 5, 3]
    assert packed(np.array([], dtype=np.int64), 2).tolist() == []


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 5))
def test_packing_only_reorders_and_opens_no_more_frames(frames: list[int], per_frame: int) -> None:
    images = np.array(frames)
    order = packed(images, per_frame)
    assert sorted(order.tolist()) == list(range(len(frames)))
    assert order[0] == 0
    for k in range(1, len(frames) + 1):
        assert len(set(images[order[:k]])) <= len(set(images[:k]))
    for frame in set(frames):  # within a frame the order stays
        mine = [i for i in order.tolist() if frames[i] == frame]
        assert mine == sorted(mine)


def test_what_costs_just_as_much_is_paid_for() -> None:
    totals = CostModel(patch=0, frame=0).totals([item("a", 0.1, 36.0)] * 3)
    assert totals.clicks[2] > 0.3  # by rounding
    assert Budget(0.3, "clicks").cut(totals) == 3
    assert Budget(0.03, "hours").cut(totals) == 3
