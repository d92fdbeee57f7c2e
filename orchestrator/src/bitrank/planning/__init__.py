"""Make a plan from a model, a task and a byte budget.

Measured tables give costs, costs and sizes give a planning problem, and a planner solves it: formats and
ranks by matrix.
"""
