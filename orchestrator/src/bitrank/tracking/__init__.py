"""All code that uses MLflow or Weights & Biases, and the files of results."""
