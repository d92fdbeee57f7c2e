"""From a list of specs to processes that run them."""
