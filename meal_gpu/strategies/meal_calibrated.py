"""MEAL on probabilities that were calibrated on validation images."""

from dataclasses import replace

from meal_gpu.strategies import meal

STRATEGY = replace(
    meal.STRATEGY,
    name="meal-calibrated",
    summary="MEAL with a temperature fitted on half of the validation images",
    source="Sreenivasaiah et al. 2021; Guo et al. 2017, temperature scaling",
    calibrated=True,
)
