"""What a recipe takes, before it is run: its size (size), its memory (memory, gpus), what would go wrong
(problems), its time and all of it together (plan), as a page of text (describe).

Arithmetic alone: nothing here imports torch, reads data or looks at the machine. What was measured comes from the caller
(fox/runs/choose.py).
"""

from fox.plan.describe import describe
from fox.plan.gpus import GPUS, Gpu
from fox.plan.plan import Measured, Plan, StagePlan, plan

__all__ = ["GPUS", "Gpu", "Measured", "Plan", "StagePlan", "describe", "plan"]
