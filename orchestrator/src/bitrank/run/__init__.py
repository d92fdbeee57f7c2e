"""One run inside its process; ``road`` reads from top to bottom."""
