"""What loading and quantizing a base takes, and nothing else: one JSON line of figures. Linux.

    python benchmarks/loading.py --config B-Q4 --task wiki_articles

Everything that a run imports is there and the model stands without weights when counting begins: the peak
(VmHWM) is set back to what is resident, the road's own functions read, quantize and store matrix by matrix,
and the peak over where it began is what that took.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import bitsandbytes  # noqa: F401 - loaded lazily otherwise, and counted as weights
import optimum.quanto  # noqa: F401
from bitrank.models.load import open_model
from bitrank.run.adapter_init import choose_init
from bitrank.run.plans import make_plans, store_base
from bitrank.spec.configs import find_config
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import make_spec
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
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    before = peak_memory_mib()
    store_base(spec, loaded, plans.bits, init, "cpu", dtype)
    print(
        json.dumps({
            "loading_mib": peak_memory_mib() - before,
            "stored_mib": stored_bytes(loaded.model).total / _MIB,
            "largest_fp32_mib": 4 * largest / _MIB,
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
