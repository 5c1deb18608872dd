"""vLLM, as it is released, follows a published run: its weight-transfer engine `trimtab`.

vLLM finds `register` by the entry point in the group `vllm.general_plugins`, and uses the engine if
it is started with `--weight-transfer-config '{"backend": "trimtab"}'`.
"""

from __future__ import annotations

import inspect
import os
from importlib import import_module
from typing import Any

from trimtab.errors import SyncError

BACKEND = "trimtab"

ENGINE = "trimtab.sync.engines.vllm_engine"

PARTS = {
    "vllm.distributed.weight_transfer.base": ("WeightTransferEngine", "WeightTransferInitInfo"),
    "vllm.model_executor.model_loader.reload.layerwise": (
        *("initialize_layerwise_reload", "finalize_layerwise_reload", "get_layerwise_info"),
    ),
    "vllm.model_executor.model_loader.reload.meta": ("restore_layer_on_meta", "to_meta_tensor"),
    "vllm.model_executor.model_loader.reload.utils": ("get_layer_params_buffers",),
    "vllm.v1.worker.worker_base": ("WorkerBase",),
}
"""What of vLLM is used: module -> names in it."""

METHODS = {
    "__init__": ("self", "config", "vllm_config", "device", "model"),
    "init_transfer_engine": ("self", "init_info"),
    "start_weight_update": ("self",),
    "receive_weights": ("self", "update_info"),
    "finish_weight_update": ("self",),
    "shutdown": ("self",),
}
"""The methods that the engine has, and what vLLM calls them with."""

TESTED = "0.32"

processors: set[int] = set()
"""Those that this process may use: vLLM binds the threads of a CPU worker to one of them each."""


def register() -> None:
    """Make the engine known to vLLM, in each of its processes; it is imported when it is used."""
    if hasattr(os, "sched_getaffinity") and not processors:
        processors.update(os.sched_getaffinity(0))
    try:
        factory: Any = import_module("vllm.distributed.weight_transfer.factory")
        register_engine = factory.WeightTransferEngineFactory.register_engine
    except (ImportError, AttributeError):
        return  # a vLLM without weight transfer: it says itself that it has no such option
    register_engine(BACKEND, ENGINE, "TrimtabEngine")


def check_version() -> None:
    """Look whether this vLLM has what the engine uses.

    Raises:
        SyncError: It lacks something; the message says what, and which version was tested.
    """
    for module, names in PARTS.items():
        try:
            found: Any = import_module(module)
        except ImportError:
            raise _not_usable(module) from None
        for name in names:
            if not hasattr(found, name):
                raise _not_usable(f"{module}.{name}")
    base = import_module("vllm.distributed.weight_transfer.base").WeightTransferEngine
    for name, expected in METHODS.items():
        method = getattr(base, name, None)
        if method is None or tuple(inspect.signature(method).parameters) != expected:
            raise _not_usable(f"WeightTransferEngine.{name}({', '.join(expected)})")
    if others := base.__abstractmethods__ - METHODS.keys():
        raise SyncError(
            f"this vLLM wants {', '.join(sorted(others))} of a weight-transfer engine, which "
            f"trimtab does not have: use vLLM {TESTED}, with which it was tested"
        )


def _not_usable(missing: str) -> SyncError:
    return SyncError(
        f"this vLLM has no {missing}, which trimtab uses: use vLLM {TESTED}, with which it was "
        "tested"
    )
