"""From a model, a task and a byte budget to a plan: measured tables → costs → a problem → a solver → formats and ranks by matrix."""
