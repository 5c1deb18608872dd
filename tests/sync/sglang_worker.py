"""A worker of SGLang around the released wheel's own call of a custom weight loader.

Real, from the wheel: `WeightUpdater.update_weights_from_tensor`, `begin_weight_update` and
`end_weight_update`, the (un)pickling of requests, `dynamic_import`, and the patch of torch's
pickling. Put in place of what needs a GPU or the whole server: model classes and loaders, the
runtime context (rank and group are those of a real gloo group), platforms, network addresses, the
HTTP routes and the scheduler, which passes a request to all ranks.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import sys
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

ROOT = "sglang/srt"
WHOLE = (
    "model_executor/model_runner_components/weight_updater.py",
    "weight_sync/tensor_bucket.py",
    "utils/patch_torch.py",
)
PARTS = (
    *("MultiprocessingSerializer", "SafeUnpickler", "_safe_load_torch_storage", "dynamic_import"),
    *("SerializedTensorPayload", "_looks_like_pickle_payload"),
    *("normalize_serialized_named_tensor_payload", "normalize_serialized_named_tensor_payloads"),
)
HEAD = """
import binascii, importlib, io, logging, pickle, torch
from multiprocessing.reduction import ForkingPickler
from typing import *
import pybase64
logger = logging.getLogger(__name__)
is_npu = is_musa = lambda: False
torch_release = (2, 13)
"""


def unpack(wheel: Path, folder: Path) -> None:
    """Lay out the parts of the wheel that are used, as a package `sglang`."""
    with zipfile.ZipFile(wheel) as archive:
        for name in WHOLE:
            path = folder / ROOT / name
            path.parent.mkdir(parents=True)
            path.write_bytes(archive.read(f"{ROOT}/{name}"))
        source = archive.read(f"{ROOT}/utils/common.py").decode()
    wanted = []
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        names = {getattr(node, "name", "")} | {getattr(each, "id", "") for each in targets}
        if names & set(PARTS):
            wanted.append(ast.get_source_segment(source, node) or "")
    assert len(wanted) == len(PARTS)
    (folder / ROOT / "utils/common.py").write_text(HEAD + "\n\n".join(wanted))


def put(name: str, **names: Any) -> None:
    """Make a module that has some names, and the packages around it."""
    module = sys.modules.setdefault(f"sglang.{name}", ModuleType(name))
    module.__dict__.update(names)


def set_up(folder: Path, rank: int, world: int) -> type[Any]:
    """Import the wheel's `WeightUpdater`, with what it imports in place."""
    sys.modules.setdefault("pybase64", base64)
    for name in ("", ".srt", ".srt.utils", ".srt.weight_sync", ".srt.model_executor"):
        package = ModuleType(f"sglang{name}")
        package.__path__ = [str(folder.joinpath("sglang", *name.split(".")[1:]))]
        sys.modules[f"sglang{name}"] = package
    nothing = lambda *_, **__: None  # noqa: E731
    group = SimpleNamespace(world_size=world, cpu_group=torch.distributed.group.WORLD)
    put("srt.configs.load_config", LoadConfig=None)
    put(
        "srt.model_loader.loader",
        DefaultModelLoader=SimpleNamespace(
            restore_weights_before_loading=nothing, postprocess_weights=nothing
        ),
        get_model_loader=None,
        post_load_weights=nothing,
    )
    put("srt.model_loader.utils", set_default_torch_dtype=None)
    put("srt.model_loader.weight_utils", default_weight_loader=None, get_pp_stage_load_group=None)
    put("srt.platforms", current_platform=None)
    put(
        "srt.runtime_context",
        get_model=lambda: SimpleNamespace(weight_cache_mode="off"),
        get_parallel=lambda: SimpleNamespace(tp_rank=rank, tp_group=group),
    )
    put("srt.utils.network", NetworkAddress=None)
    put("kernels.ops.gemm.bf16_fp32", hpc_bf16xfp32_gemm_enabled=lambda: False)
    import sglang.srt.utils.common as common  # type: ignore[import-not-found]

    put(
        "srt.utils",
        MultiprocessingSerializer=common.MultiprocessingSerializer,
        dynamic_import=common.dynamic_import,
        get_available_gpu_memory=None,
        init_custom_process_group=None,
    )
    from sglang.srt.model_executor.model_runner_components import (  # type: ignore[import-not-found]
        weight_updater,
    )

    updater: type[Any] = weight_updater.WeightUpdater
    return updater


class Model(nn.Module):
    """A model that fuses tensors of its files, as SGLang's do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.zeros(24, 8, dtype=torch.bfloat16), requires_grad=False)
        self.norm = nn.Parameter(torch.zeros(8, dtype=torch.float32), requires_grad=False)
        self.loaded: list[str] = []

    def load_weights(self, weights: Any) -> None:
        self.loaded = []
        for name, tensor in weights:
            self.loaded.append(name)
            part: Tensor = self.norm.data
            if name != "norm":
                part = self.qkv.data[8 * "qkv".index(name) :][:8]
            part.copy_(tensor)

    def digest(self) -> str:
        hasher = hashlib.sha256()
        for tensor in (self.qkv, self.norm):
            hasher.update(tensor.data.view(torch.uint8).numpy().tobytes())
        return hasher.hexdigest()


class Scheduler:
    """What the server does with a request, in each rank."""

    def __init__(self, updater: Any, model: Model) -> None:
        self.updater, self.model = updater, model
        self.has_session = False
        self.calls: list[str] = []

    def handle(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        from sglang.srt.utils import common

        self.calls.append(path)
        success, message = True, ""
        if path == "/begin_weight_update":
            self.updater.begin_weight_update()
            self.has_session = True
        elif path == "/end_weight_update":
            self.updater.end_weight_update(run_post_load=False)
            self.has_session = False
        elif path == "/update_weights_from_tensor":
            assert self.has_session
            sent = common.normalize_serialized_named_tensor_payloads(
                content["serialized_named_tensors"]
            )
            rank = torch.distributed.get_rank()
            success, message = self.updater.update_weights_from_tensor(
                named_tensors=common.MultiprocessingSerializer.deserialize(sent[rank]),
                load_format=content["load_format"],
            )
        ours = {"digest": self.model.digest(), "loaded": self.model.loaded}
        ranks: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, ours)
        calls, self.calls = self.calls, self.calls if path != "/seen" else []
        return {"success": success, "message": message, "ranks": ranks, "calls": calls}


def main() -> None:
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world
    )
    model = Model()
    updater = set_up(folder, rank, world)(
        tp_rank=rank,
        device="cpu",
        gpu_id=-1,
        model_config=None,
        custom_weight_loaders=["trimtab.sync.engines.sglang.load"],
        get_model=lambda: model,
        update_model_fields=None,
        recapture_cuda_graph=None,
        get_model_runner=lambda: SimpleNamespace(server_args=None),
    )
    scheduler = Scheduler(updater, model)
    if rank:
        while True:
            request: list[Any] = [None]
            torch.distributed.broadcast_object_list(request, src=0)
            scheduler.handle(*request[0])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = [(self.path, content)]
            torch.distributed.broadcast_object_list(request, src=0)
            answer = json.dumps(scheduler.handle(self.path, content)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    (folder / "port").write_text(str(server.server_port))
    server.serve_forever()


if __name__ == "__main__":
    main()
