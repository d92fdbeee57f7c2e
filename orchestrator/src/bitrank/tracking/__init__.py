"""Everything that knows MLflow or Weights & Biases, and the files of results."""
