"""Imports that are quicker give the same modules, and what bitsandbytes asks to compile is compiled when it is called."""

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
    import bitrank.run.road
import torch
from bitsandbytes.backends.default import ops
dequantized = ops._dequantize_4bit_compute.__wrapped__
print(json.dumps({
    "inside": inside, "after": gc.isenabled(), "frozen": gc.get_freeze_count(), "compiler": "torch._inductor.compile_fx" in sys.modules,
    "compile": torch.compile.__module__, "function": dequantized.__name__,
}))
"""


def test_a_run_imports_without_the_compiler_and_leaves_all_as_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["inside"] is False and found["after"] is True and found["frozen"] > 100_000
    assert found["compiler"] is False, (
        "bitsandbytes, or another library, reads torch's compiler while it is imported"
    )
    assert found["compile"] == "torch" and found["function"] == "_dequantize_4bit_compute"


def test_late_compiles_once_at_the_first_call_with_the_words_given() -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def compile_now(function: Any, **words: Any) -> Any:
        asked.append((function.__name__, words))
        return lambda *args, **kwargs: ("compiled", function(*args, **kwargs))

    compiler = late(compile_now)

    def doubled(number: int, more: int = 0) -> int:
        """Twice."""
        return 2 * number + more

    plain, decorated = compiler(doubled), compiler(dynamic=True)(doubled)
    assert asked == [] and plain.__doc__ == "Twice."
    assert plain(2) == ("compiled", 4) and plain(3, more=1) == ("compiled", 7)
    assert asked == [("doubled", {})]
    assert decorated(4) == ("compiled", 8)
    assert asked == [("doubled", {}), ("doubled", {"dynamic": True})]
