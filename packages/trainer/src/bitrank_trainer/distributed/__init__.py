"""Training in several processes: data parallel and fully sharded."""
