"""Fast imports give the same modules, and bitsandbytes' functions are compiled at their first call."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from bitrank.process.fast_imports import late

PROBE = """
import gc, json, sys
from bitrank.process.fast_imports import quick_imports
with quick_imports():
    inside = gc.isenabled()
    import bitrank.run.train_run
import torch
from bitsandbytes.backends.default import ops
dequantized = ops._dequantize_4bit_compute.__wrapped__
print(json.dumps({
    "inside": inside, "after": gc.isenabled(), "frozen": gc.get_freeze_count(),
    "compiler": "torch._inductor.compile_fx" in sys.modules,
    "compile": torch.compile.__module__, "function": dequantized.__name__,
}))
"""


def test_fast_import_skips_the_compiler_and_restores_torch_compile_and_gc() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["inside"] is False and found["after"] is True and found["frozen"] > 100_000
    assert found["compiler"] is False, "bitsandbytes, or another library, loads torch's compiler at import"
    assert found["compile"] == "torch" and found["function"] == "_dequantize_4bit_compute"


def test_late_compiles_once_at_the_first_call_with_the_given_options() -> None:
    compilations: list[tuple[str, dict[str, Any]]] = []

    def compile_now(function: Any, **options: Any) -> Any:
        compilations.append((function.__name__, options))
        return lambda *args, **kwargs: ("compiled", function(*args, **kwargs))

    compiler = late(compile_now)

    def doubled(number: int, more: int = 0) -> int:
        """Twice."""
        return 2 * number + more

    plain, decorated = compiler(doubled), compiler(dynamic=True)(doubled)
    assert compilations == [] and plain.__doc__ == "Twice."
    assert plain(2) == ("compiled", 4) and plain(3, more=1) == ("compiled", 7)
    assert compilations == [("doubled", {})]
    assert decorated(4) == ("compiled", 8)
    assert compilations == [("doubled", {}), ("doubled", {"dynamic": True})]
