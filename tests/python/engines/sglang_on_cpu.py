"""Runs the real SGLang on the CPU, a tiny Llama of random weights, with and without the plug-in.

    python tests/python/engines/sglang_on_cpu.py

Each of the cases runs in a process of its own; its logits of a prefill and six decode steps are
compared with those of a run without the plug-in, bit for bit. Needs an environment with SGLang
0.5.17 or 0.5.23 (without its CUDA kernels), PyTorch, the version of transformers that SGLang
requires, and this package installed, so that SGLang finds the entry point. ``vllm`` is not needed:
SGLang imports one function of it, for CPUs without AMX, that this model does not call.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

SWITCH = "WEIGHBRIDGE_SGLANG"
CASES = [
    ({"offload_bytes": "1MiB", "transfer_mode": "prefetch"}, {}),
    ({"offload_bytes": "1MiB", "transfer_mode": "zero-copy"}, {}),
    ({"offload_bytes": "2MiB", "transfer_mode": "on-demand", "exclude": ["mlp"]}, {}),
    ({"device_bytes": "1500KB"}, {}),
    ({}, {"cpu_offload_gb": 1}),
    ({}, {"offload_group_size": 3, "offload_prefetch_step": 1}),
]
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


def run(folder: Path, arguments: dict) -> None:
    """Runs the model; saves the logits of each step in ``folder``, and the offloader's counters."""
    if "vllm" not in sys.modules:
        for name in ("vllm", "vllm._custom_ops"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["vllm._custom_ops"].rotary_embedding = None

    import torch
    from sglang.srt import plugins

    plugins.load_plugins()
    from sglang.benchmark import one_batch
    from sglang.srt.server_args import PortArgs, ServerArgs
    from sglang.srt.utils.offloader import get_offloader

    server = ServerArgs(
        model_path=str(folder),
        device="cpu",
        load_format="dummy",
        skip_tokenizer_init=True,
        disable_cuda_graph=True,
        max_total_tokens=2048,
        max_running_requests=4,
        mem_fraction_static=0.1,
        **arguments,
    )
    one_batch.get_tokenizer = lambda *_, **__: None
    if hasattr(one_batch, "publish"):  # SGLang 0.5.23
        rank = one_batch.spawn_world_rank(server, tp_rank=0, pp_rank=0)
        ranks = one_batch.SpawnRanks(world_rank=rank, gpu_id=0)
        one_batch.publish(server, role="scheduler", ranks=ranks)
        one_batch._init_process_global_configs()
    else:
        for name in ("moe_config", "fp8_gemm_config", "fp4_gemm_config"):
            getattr(one_batch, f"initialize_{name}")(server)
    runner, _ = one_batch.load_model(server, PortArgs.init_new(server), 0, 0)
    prompts = [[(7 * at + 31 * row) % 255 for at in range(24)] for row in range(2)]
    requests = one_batch.prepare_synthetic_inputs_for_latency_test(2, 24, prompts)
    with torch.no_grad():
        tokens, logits, batch = runner.extend(requests)
        steps = [logits.clone()]
        for _ in range(6):
            tokens, logits = runner.decode(tokens, batch)
            steps.append(logits.clone())
    torch.save(steps, folder / "logits.pt")
    layers = getattr(get_offloader(), "_layers", None)
    stats = layers.weights.offloader.stats if layers else None
    counters = [stats.offloaded_bytes, stats.moved_bytes] if stats else [0, 0]
    (folder / "stats.json").write_text(json.dumps(counters))
    os._exit(0)  # SGLang's threads do not end by themselves


def in_process(folder: Path, options: dict | None, arguments: dict) -> list:
    """Runs a case in a process; returns the logits, and the offloaded and the copied bytes."""
    import torch

    environment = {**os.environ, SWITCH: "" if options is None else json.dumps(options)}
    command = [sys.executable, __file__, str(folder), json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        sys.exit(done.stderr)
    counters = json.loads((folder / "stats.json").read_text())
    return [torch.load(folder / "logits.pt"), *counters]


def main() -> int:
    """Compares each case with the run without the plug-in; 1 if one differs."""
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(LLAMA))
        right, nothing, _ = in_process(folder, None, {})
        failed = nothing != 0
        for options, arguments in CASES:
            found, offloaded, copied = in_process(folder, options, arguments)
            equal = all(map(torch.equal, found, right)) and len(found) == len(right) == 7
            failed |= not equal or not offloaded
            print(
                f"{'bit-identical' if equal else 'DIFFERENT'}: {options} {arguments}, "
                f"{offloaded} bytes offloaded, {copied} copied"
            )
    return int(failed)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(Path(sys.argv[1]), json.loads(sys.argv[2]))
    sys.exit(main())
