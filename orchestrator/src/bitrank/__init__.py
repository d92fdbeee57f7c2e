"""bitrank: how many bits and how much LoRA rank each weight matrix gets; the study that compares the choices."""

__version__ = "0.1.0"
