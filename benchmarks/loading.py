"""Memory for loading and quantizing a base model alone; prints one JSON line of figures. Linux only.

    python benchmarks/loading.py --config B-Q4 --task wiki_articles

Measurement begins after all imports, with a model without weights: the peak (VmHWM) is reset to the resident
size, the functions of a real run read, quantize and store matrix by matrix, and the increase of the peak is
reported. The steps of ``build_model`` are called one by one, because the peak is reset in the middle of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import bitsandbytes  # noqa: F401 - a lazy import would be counted as weights
import optimum.quanto  # noqa: F401
from bitrank.models.load import open_model
from bitrank.run.adapter_init import choose_init
from bitrank.run.plans import make_plans, store_base
from bitrank.spec.configs import find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank_quant import stored_bytes
from bitrank_trainer import DTYPES, choose_dtype, peak_memory_mib, pin_threads, release_memory

_MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--task", required=True)
    arguments = parser.parse_args()
    spec = make_spec(find_profile("laptop"), arguments.config, arguments.task, {})
    pin_threads(spec.threads)
    dtype = DTYPES[choose_dtype("cpu")]
    loaded = open_model(spec, 2, "cpu", dtype)
    plans = make_plans(find_config(spec.config, spec.plan, spec.tuned), loaded)
    init = choose_init(spec, plans.ranks)
    largest = max(matrix.shape[0] * matrix.shape[1] for matrix in plans.quantizable)
    release_memory()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the resident size
    before = peak_memory_mib()
    store_base(spec, loaded, plans.formats, init, "cpu", dtype)
    print(
        json.dumps({
            "loading_mib": peak_memory_mib() - before,
            "stored_mib": stored_bytes(loaded.model).total / _MIB,
            "largest_fp32_mib": 4 * largest / _MIB,
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
