"""Planning: solvers search for cheap action sequences, objectives say what is cheap, a receding horizon acts."""

from typing import Any

from jaxwm.planning.base import Cost, Plan, Solver
from jaxwm.planning.cem import CEM, ICEM, CategoricalCEM
from jaxwm.planning.gradient import Gradient
from jaxwm.planning.objectives import (
    OBJECTIVES,
    Goal,
    GoalDistance,
    Objective,
    Reward,
    Uncertainty,
    Value,
    Weighted,
    encode_goal,
)
from jaxwm.planning.receding import PlanningAgent, PlanningMemory, PlanningParams, imagined_cost, plan
from jaxwm.planning.sampling import MPPI, PredictiveSampling, RandomShooting

SOLVERS: dict[str, Any] = {
    "random_shooting": RandomShooting,
    "predictive_sampling": PredictiveSampling,
    "cem": CEM,
    "icem": ICEM,
    "mppi": MPPI,
    "gradient": Gradient,
    "categorical_cem": CategoricalCEM,
}
"""Every solver by the name that ``planning.solver.name`` gives it."""

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "OBJECTIVES",
    "SOLVERS",
    "CategoricalCEM",
    "Cost",
    "Goal",
    "GoalDistance",
    "Gradient",
    "Objective",
    "Plan",
    "PlanningAgent",
    "PlanningMemory",
    "PlanningParams",
    "PredictiveSampling",
    "RandomShooting",
    "Reward",
    "Solver",
    "Uncertainty",
    "Value",
    "Weighted",
    "encode_goal",
    "imagined_cost",
    "plan",
]
