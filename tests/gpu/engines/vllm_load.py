"""Serves 64 requests of mixed length at a time, repeatedly, with and without offloaded weights.

    python vllm_load.py [ROUNDS]     (through tests/gpu/engines/vllm.sh load)

The outputs must be equal, and neither host nor device memory may grow after the first rounds.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vllm_cases import BUDGETS, FOLDER
from vllm_models import SMALL, write_checkpoint

REQUESTS = 64
WARM = 4
"""Rounds after which memory may not grow."""
GROWTH = 8 << 20


def memory() -> tuple[int, int]:
    """Returns the resident bytes of this process, and the used bytes of the device."""
    import torch

    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    free, total = torch.cuda.mem_get_info()
    return resident, total - free


def run(budget: str, rounds: int, output: Path) -> None:
    """Serves the rounds, and writes what was generated and the memory after each."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(FOLDER / "dense"),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=1024,
        max_num_batched_tokens=2048,
        max_num_seqs=REQUESTS,
        kv_cache_memory_bytes=2 << 30,
        enable_prefix_caching=False,
        disable_log_stats=True,
        compilation_config={"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64]},
        **BUDGETS[budget],
    )
    generator = random.Random(11)
    found, used, begun = [], [], time.monotonic()
    for _ in range(rounds):
        prompts, options = [], []
        for _ in range(REQUESTS):
            length = generator.choice((3, 20, 90, 300, 700))
            ids = [generator.randrange(2, 8000) for _ in range(length)]
            prompts.append({"prompt_token_ids": ids})
            tokens = generator.randrange(4, 96)
            options.append(
                SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            )
        outputs = llm.generate(prompts, options, use_tqdm=False)
        found.append([list(one.outputs[0].token_ids) for one in outputs])
        used.append(memory())
    seconds = time.monotonic() - begun
    output.write_text(json.dumps({"found": found, "memory": used, "seconds": seconds}))
    os._exit(0)


def served(budget: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Serves in a process of its own."""
    output = folder / f"{budget}.json"
    with (folder / f"{budget}.log").open("wb") as log:
        command = [sys.executable, __file__, "--run", budget, str(rounds), str(output)]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=280, check=False)
    if not output.exists():
        print((folder / f"{budget}.log").read_text(errors="replace")[-4000:])
        raise SystemExit(f"{budget}: FAILED")
    found = json.loads(output.read_text())
    growth = [found["memory"][-1][at] - found["memory"][WARM][at] for at in (0, 1)]
    print(
        f"{budget}: {rounds} rounds in {found['seconds']:.1f} s; growth of host {growth[0]} and "
        f"device {growth[1]} bytes since round {WARM}",
        flush=True,
    )
    return {**found, "growth": max(growth)}


def main(arguments: list[str]) -> int:
    """Serves resident, then offloaded, and compares."""
    if arguments[:1] == ["--run"]:
        run(arguments[1], int(arguments[2]), Path(arguments[3]))
    rounds = int(arguments[0]) if arguments else 24
    write_checkpoint(FOLDER / "dense", SMALL)
    folder = Path(tempfile.mkdtemp(prefix="vllm-load-"))
    expected, found = (served(budget, rounds, folder) for budget in ("resident", "gb"))
    pairs = [
        (one, other)
        for before, after in zip(expected["found"], found["found"])
        for one, other in zip(before, after)
    ]
    different = sum(one != other for one, other in pairs)
    print(f"{different} of {len(pairs)} outputs differ")
    grown = found["growth"] > max(GROWTH, expected["growth"] + GROWTH)
    return 1 if different or grown else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
