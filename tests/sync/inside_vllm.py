"""What `test_vllm.py` runs in the environment of vLLM, with the model in the same process.

    python inside_vllm.py FOLDER DTYPE

FOLDER has the checkpoints of versions 0, 1, 2, …, and the place `run`. It prints one line of JSON.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
warnings.filterwarnings("ignore")

PROMPTS = [{"prompt_token_ids": ids} for ids in ([5, 17, 99, 3], [200, 4, 4], [61] * 9)]


def main(folder: Path, dtype: str) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.config import set_current_vllm_config
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.distributed import cleanup_dist_env_and_memory

    sampling = SamplingParams(temperature=0, max_tokens=8, logprobs=0, detokenize=False)

    def started(version: int, **options: Any) -> Any:
        return LLM(
            model=str(folder / f"{version}"),
            dtype=dtype,
            max_model_len=64,
            enforce_eager=True,
            max_num_seqs=4,
            skip_tokenizer_init=True,
            **options,
        )

    def answers(llm: Any) -> list[Any]:
        found = llm.generate(PROMPTS, sampling, use_tqdm=False)
        return [[[*o.outputs[0].token_ids], o.outputs[0].cumulative_logprob] for o in found]

    def end(llm: Any) -> None:
        llm.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()

    num = len([path for path in folder.iterdir() if path.name.isdigit()])
    fresh = []
    for version in range(num):
        llm = started(version)
        fresh.append(answers(llm))
        end(llm)
        del llm
        gc.collect()

    llm = started(0, weight_transfer_config=WeightTransferConfig(backend="trimtab"))
    # After vLLM has started: on a CPU it stumbles over modules of Numba.
    from trimtab.results.records import content_hash
    from trimtab.sync.engines import vllm_weights

    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    model, engine = worker.model_runner.get_model(), worker.weight_transfer_engine

    def served() -> dict[str, Any]:
        return llm.collective_rpc("trimtab_served")[0]

    def hash_of(answer: dict[str, Any]) -> str:
        rows = answer["tensors"].items()
        return content_hash(sorted((n, t["dtype"], tuple(t["shape"]), t["hash"]) for n, t in rows))

    def differing(answer: dict[str, Any], other: dict[str, Any]) -> list[str]:
        return [n for n, t in answer["tensors"].items() if t["hash"] != other["tensors"][n]["hash"]]

    def update(version: int | None = None) -> str:
        llm.collective_rpc("start_weight_update")
        try:
            llm.collective_rpc("update_weights", args=({"version": version},))
            llm.collective_rpc("finish_weight_update")
        except Exception as error:
            return str(error)
        llm.reset_prefix_cache()
        return ""

    result: dict[str, Any] = {"fresh": fresh}
    result["before"] = update()
    llm.collective_rpc("init_weight_transfer_engine", args=({"folder": str(folder / "run")},))
    followed, hashes = [answers(llm)], [hash_of(served())]
    for version in range(1, num):
        assert update(version) == ""
        followed.append(answers(llm))
        last = served()
        hashes.append(hash_of(last))
    result |= {"followed": followed, "hashes": hashes}
    result["ways"] = sorted({t["way"] for t in last["tensors"].values()})
    result["num_unseen"] = sum(t["num_unseen"] for t in last["tensors"].values())
    result["problems"] = [t["problem"] for t in last["tensors"].values() if t["problem"]]

    # One bit of what is served changes, in a matrix that is fused with others, and perhaps packed.
    copy = engine._holder.tensors
    name = "model.layers.1.self_attn.k_proj.weight"
    changed = {key: t.clone() for key, t in copy.items()}
    changed[name].view(-1).view(dtype=vllm_weights.INTEGERS[2])[77] ^= 1

    def load(weights: Any, names: list[str]) -> None:
        layers, needed = vllm_weights.whole_layers(engine._layers, names)
        with set_current_vllm_config(worker.vllm_config):
            some = {key: t for key, t in weights.items() if key in needed}
            vllm_weights.reload_layers(model, worker.model_config, some, layers)

    load(changed, [name])
    result["flipped"] = differing(served(), last)
    load(copy, [name])
    result["mended"] = differing(served(), last)

    # vLLM's own reload leaves a tied head with the packed matrix of before.
    name = "model.embed_tokens.weight"
    changed[name].view(-1).view(dtype=vllm_weights.INTEGERS[2])[7] ^= 64
    sharing, vllm_weights._sharing = vllm_weights._sharing, lambda *_: []
    load(changed, [name])
    found = served()["tensors"][name]
    result["stale_head"] = found["problem"]
    vllm_weights._sharing = sharing
    load(copy, [name])
    result["mended_head"] = differing(served(), last)

    # A layer fails while the model is changed: it goes back to the version before.
    assert update(1) == ""
    real, fails = vllm_weights.reload_layers, [1]

    def failing(model: Any, config: Any, weights: Any, layers: Any) -> None:
        if fails and fails.pop():
            some = sorted(layers)[: len(layers) // 2]
            names = {n for n in weights if set(engine._layers[n]) <= set(some)}
            real(model, config, {n: t for n, t in weights.items() if n in names}, some)
            raise RuntimeError("out of memory")
        real(model, config, weights, layers)

    setattr(vllm_weights, "reload_layers", failing)  # noqa: B010
    result["failure"] = update(2)
    result["after_failure"] = [llm.collective_rpc("trimtab_status")[0], hash_of(served())]
    result["answers_after_failure"] = answers(llm)
    fails[:] = [1, 1]  # going back fails, too
    result["lost"] = update(2)
    result["status_lost"] = llm.collective_rpc("trimtab_status")[0]
    try:
        model(None, None)
    except RuntimeError as error:
        result["refused"] = str(error)
    result["repaired"] = update(2)
    result["status_repaired"] = llm.collective_rpc("trimtab_status")[0]
    result["hash_repaired"] = hash_of(served())
    result["answers_repaired"] = answers(llm)
    end(llm)
    return result


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
