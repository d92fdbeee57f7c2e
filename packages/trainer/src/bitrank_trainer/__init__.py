"""Training loop, evaluation, checkpoints, and meters of memory and speed."""

from bitrank_trainer.checkpoints import Progress
from bitrank_trainer.distributed.data_parallel import ALONE, Joined, Processes, join, leave
from bitrank_trainer.distributed.fully_sharded import Sharded
from bitrank_trainer.errors import Diverged, TrainError
from bitrank_trainer.evaluation import Evaluation, evaluate
from bitrank_trainer.fused.attention import register_attention
from bitrank_trainer.fused.first_token import narrow_last_block
from bitrank_trainer.fused.own_attention import OwnAttention, implementation
from bitrank_trainer.fused.rotary import fuse_rotary
from bitrank_trainer.hardware import (
    DEVICES,
    DTYPES,
    available_devices,
    choose_device,
    choose_dtype,
    pin_threads,
    usable_threads,
    width_multiple,
)
from bitrank_trainer.hooks import NoHook, RankHook
from bitrank_trainer.last_position import last_token_head, read_last_token
from bitrank_trainer.loop import Task, train
from bitrank_trainer.loss_scale import FIRST_SCALE
from bitrank_trainer.memory.meters import (
    Throughput,
    device_memory_mib,
    has_tcmalloc,
    keep_memory,
    peak_memory_mib,
    release_memory,
    resident_bytes,
)
from bitrank_trainer.memory.micro_batches import fitting_tokens, kept_bytes, longest_sequence, micro_batches
from bitrank_trainer.memory.tensor_sizes import MPS_BYTES, Shapes, safe_tokens, shapes_of, tensor_bytes
from bitrank_trainer.memory_errors import is_out_of_memory
from bitrank_trainer.model_inputs import Row
from bitrank_trainer.objectives import (
    OBJECTIVES,
    Classification,
    LanguageModelling,
    Objective,
)
from bitrank_trainer.optimizer import trainable
from bitrank_trainer.probing import Probing
from bitrank_trainer.question_answering import QuestionAnswering
from bitrank_trainer.settings import TrainSettings

__version__ = "0.1.0"
__all__ = [
    "ALONE",
    "DEVICES",
    "DTYPES",
    "FIRST_SCALE",
    "MPS_BYTES",
    "OBJECTIVES",
    "Classification",
    "Diverged",
    "Evaluation",
    "Joined",
    "LanguageModelling",
    "NoHook",
    "Objective",
    "OwnAttention",
    "Probing",
    "Processes",
    "Progress",
    "QuestionAnswering",
    "RankHook",
    "Row",
    "Shapes",
    "Sharded",
    "Task",
    "Throughput",
    "TrainError",
    "TrainSettings",
    "available_devices",
    "choose_device",
    "choose_dtype",
    "device_memory_mib",
    "evaluate",
    "fitting_tokens",
    "fuse_rotary",
    "has_tcmalloc",
    "implementation",
    "is_out_of_memory",
    "join",
    "keep_memory",
    "kept_bytes",
    "last_token_head",
    "leave",
    "longest_sequence",
    "micro_batches",
    "narrow_last_block",
    "peak_memory_mib",
    "pin_threads",
    "read_last_token",
    "register_attention",
    "release_memory",
    "resident_bytes",
    "safe_tokens",
    "shapes_of",
    "tensor_bytes",
    "train",
    "trainable",
    "usable_threads",
    "width_multiple",
]
