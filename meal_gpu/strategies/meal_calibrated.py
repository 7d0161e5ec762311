"""MEAL on probabilities that were calibrated on validation images."""

from dataclasses import replace

from meal_gpu.strategies import meal

STRATEGY = replace(
    meal.STRATEGY,
    name="meal-calibrated",
    summary="MEAL with a temperature fitted on half of the validation images",
    source="Sreenivasaiah et al. 2021 with the temperature scaling of Guo et al. 2017",
    calibrated=True,
)
