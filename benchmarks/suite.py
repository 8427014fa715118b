"""Time one training step: plain SGD, dplip, and Opacus's three ways; write the figures as JSON and as Markdown.

usage: python benchmarks/suite.py [--json FILE] [--markdown FILE] [--parts steps width depth physical compile profile]
           [--models mlp cnn tanh] [--batches 256 2048 16384] [--threads 1 2] [--rounds 15] [--seconds 10]
           [--methods dplip ghost ...] [--against plain] [--short]

Every method runs in a process of its own, and they take turns of a fifth of a second, round after round, so that
whatever else the machine does falls on all of them. The first step of a turn is not timed: it may use what was made in
the background while others had their turns. A figure is the median of the ratios to plain SGD's step in the same round,
with quartiles; memory is the peak of the whole process. A method that has used up its seconds sits out the rest. The
network has stock layers and no biases; dplip's has bounded layers in their place ("by weights": orthogonal stock
layers, whose norms are certified anew at every step). ``--json -`` prints JSON in place of the tables. Parts:

- steps: every method, model, batch and number of threads;
- width, depth: how the cost of the MLP grows, at batch 2,048 and one thread;
- physical: one batch of 16,384 in physical batches: the memory of each size;
- compile: the same with torch.compile (inductor);
- profile: where a step goes, by operation.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EAGER = ("plain", "dplip", "dplip orthogonal", "dplip by weights", "dplip bfloat16", "ghost", "hooks", "functorch")
COMPILED = ("plain", "plain compiled", "dplip", "dplip compiled")
PARTS = ("steps", "width", "depth", "physical", "compile", "profile")
LARGEST = {"hooks": 2048, "functorch": 2048}
"""The largest batch that is timed, where a step of a larger one takes minutes."""
STDOUT = Path("-")
TURN = 0.2
"""Seconds of a turn, at least."""
SHORT = {"models": ["mlp"], "batches": [64], "threads": [1], "rounds": 3, "parts": ["steps", "physical", "profile"]}
Row = dict[str, Any]


class Worker:
    """A process that takes steps when it is told to."""

    def __init__(self, method: str, case: Row, threads: int) -> None:
        self.times: list[float] = []
        self.spent = 0.0
        self.failure: str | None = None
        command = [sys.executable, __file__, "--worker", json.dumps([method, case, threads])]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._ask(None)  # it has warmed up

    def turn(self) -> None:
        started = time.perf_counter()
        answer = self._ask("turn")
        self.spent += time.perf_counter() - started
        if answer is not None:
            self.times.append(answer)

    def end(self, question: str = "end") -> Any:
        """Its peak memory in MB, or with ``"profile"`` the time that operations take; None after a failure."""
        answer = self._ask(question)
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()
        return answer

    def _ask(self, question: str | None) -> Any:
        if self.failure is not None:
            return None
        if question is not None:
            self.process.stdin.write(question + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            last = self.process.stderr.read().strip().splitlines()[-1:]
            self.failure = last[0] if last else f"exit code {self.process.wait()}"
            return None
        return json.loads(line)


def compare(case: Row, threads: int, methods: tuple[str, ...], rounds: int, seconds: float) -> Iterator[Row]:
    """One row a method: its step beside that of the first, which is plain SGD unless another is asked for."""
    methods = tuple(m for m in methods if case["batch"] <= LARGEST.get(m, case["batch"]))
    workers = {method: Worker(method, case, threads) for method in methods}
    for _ in range(rounds):
        for worker in workers.values():
            if len(worker.times) < 2 or worker.spent < seconds:
                worker.turn()
    for method, worker in workers.items():
        memory = worker.end()
        row: Row = {**case, "threads": threads, "method": method}
        if worker.failure is not None:
            yield {**row, "failure": worker.failure}
            continue
        ratios = [a / b for a, b in zip(worker.times, workers[methods[0]].times, strict=False)]
        quartiles = statistics.quantiles(ratios, n=4, method="inclusive")
        yield {
            **row,
            "ms": 1000 * statistics.median(worker.times),
            "ratio": statistics.median(ratios),
            "ratio_quartiles": [quartiles[0], quartiles[2]],
            "rounds": len(ratios),
            "memory_mb": memory,
        }


def serve(method: str, case: Row, threads: int) -> None:
    """What a worker's process does: warm up, then answer."""
    import torch

    torch.set_num_threads(threads)
    from steps import METHODS, Case

    step = METHODS[method](Case(**case))
    for _ in range(2):
        step()
    print("null", flush=True)
    for question in sys.stdin:
        print(json.dumps(answer(step, question.strip())), flush=True)


def answer(step: Any, question: str) -> Any:
    """The seconds of a step ("turn"), the milliseconds of its operations ("profile"), or the peak memory ("end")."""
    if question == "profile":
        return profile(step)
    if question == "end":
        return peak_memory()
    step()
    started, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - started < TURN:
        step()
        count += 1
    return (time.perf_counter() - started) / count


def profile(step: Any, steps: int = 10) -> dict[str, float]:
    """Milliseconds of a step that each operation takes itself."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            step()
    return {event.key: event.self_cpu_time_total / 1000 / steps for event in seen.key_averages()}


def peak_memory() -> float:
    """Peak resident memory of this process in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start at the size of the parent that forked this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def case(model: str, batch: int, **changes: Any) -> Row:
    from steps import WIDTHS, Case

    return dataclasses.asdict(dataclasses.replace(Case(model, batch, WIDTHS[model]), **changes))


def measure(part: str, arguments: argparse.Namespace) -> list[Row]:
    """The rows of one part."""
    few, batch = ("plain", "dplip", "ghost"), arguments.batches[min(1, len(arguments.batches) - 1)]
    limits = (arguments.rounds, arguments.seconds)
    if part == "profile":
        rows = []
        for model, size, method in itertools.product(arguments.models, arguments.batches[:2], ("plain", "dplip")):
            spent = Worker(method, case(model, size), 1).end("profile") or {}
            row = {**case(model, size), "threads": 1, "method": method}
            rows += [{**row, "operation": key, "ms": ms} for key, ms in spent.items()]
        return rows
    if part == "physical":
        sizes = [arguments.batches[-1] // 4**i for i in range(3)]
        cases = [(case(arguments.models[0], arguments.batches[-1], physical=s), 1, ("plain", "dplip")) for s in sizes]
    else:
        cases = {
            "steps": [
                (case(m, b), t, (arguments.against, *arguments.methods))
                for m, b, t in itertools.product(arguments.models, arguments.batches, arguments.threads)
            ],
            "width": [(case("mlp", batch, width=w), 1, few) for w in arguments.widths],
            "depth": [(case("mlp", batch, width=arguments.widths[0], depth=d), 1, few) for d in (1, 2, 4)],
            "compile": [(case(m, b), 1, COMPILED) for m in arguments.models for b in arguments.batches[:2]],
        }[part]
    rows = []
    for one, threads, methods in cases:
        for row in compare(one, threads, methods, *limits):
            rows.append(row)
            print(line(row), file=sys.stderr, flush=True)
    return rows


HEADS = "| model | width x depth | batch (physical) | threads | method | ms a step | ratio (quartiles) | peak MB |"


def line(row: Row) -> str:
    physical = f" ({row['physical']:,})" if row["physical"] else ""
    start = f"| {row['model']} | {row['width']} x {row['depth']} | {row['batch']:,}{physical} | {row['threads']} |"
    start += f" {row['method']} |"
    if "failure" in row:
        return f"{start} failed: {row['failure']} | | |"
    low, high = row["ratio_quartiles"]
    return f"{start} {row['ms']:.1f} | {row['ratio']:.2f} ({low:.2f} to {high:.2f}) | {row['memory_mb']:.0f} |"


def profiled(rows: list[Row]) -> Iterator[str]:
    """Of each case, the operations in which dplip's step differs most from the plain one's."""
    yield "| model | batch | operation | plain ms | dplip ms |\n| --- | --- | --- | --- | --- |"
    for model, batch in dict.fromkeys((r["model"], r["batch"]) for r in rows):
        spent = {
            m: {r["operation"]: r["ms"] for r in rows if (r["model"], r["batch"], r["method"]) == (model, batch, m)}
            for m in ("plain", "dplip")
        }
        more = {k: spent["dplip"].get(k, 0.0) - spent["plain"].get(k, 0.0) for k in spent["plain"] | spent["dplip"]}
        for name in sorted(more, key=lambda k: -abs(more[k]))[:10]:
            each = (spent[m].get(name, 0.0) for m in ("plain", "dplip"))
            yield f"| {model} | {batch:,} | {name} | {' | '.join(f'{ms:.2f}' for ms in each)} |"
        yield f"| {model} | {batch:,} | all | {' | '.join(f'{sum(spent[m].values()):.2f}' for m in spent)} |"


def markdown(result: Row) -> str:
    lines = [f"torch {result['torch']}, {result['machine']}, {result['cores']} cores"]
    for part, rows in result["parts"].items():
        lines += ["", f"### {part}", ""]
        lines += profiled(rows) if part == "profile" else [HEADS, "| --- " * 8 + "|", *map(line, rows)]
    return "\n".join(lines) + "\n"


def parser(short: bool) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--json", type=Path)
    found.add_argument("--markdown", type=Path)
    found.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    found.add_argument("--models", nargs="+", choices=("mlp", "cnn", "tanh"), default=["mlp", "cnn"])
    found.add_argument("--batches", nargs="+", type=int, default=[256, 2048, 16384])
    found.add_argument("--methods", nargs="+", choices=EAGER[1:], default=list(EAGER[1:]), help="of the part steps")
    found.add_argument("--against", choices=EAGER, default="plain", help="what the part steps compares with")
    found.add_argument("--widths", nargs="+", type=int, default=[512, 1024, 2048])
    found.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    found.add_argument("--rounds", type=int, default=15)
    found.add_argument(
        "--seconds", type=float, default=10.0, help="most seconds of each method, with the steps that are not timed"
    )
    found.add_argument("--short", action="store_true", help="other defaults, for a minute: the MLP at batch 64")
    found.add_argument("--worker", help=argparse.SUPPRESS)
    found.set_defaults(**(SHORT if short else {}))
    return found


def main(given: list[str] | None = None) -> Row:
    given = sys.argv[1:] if given is None else given
    arguments = parser("--short" in given).parse_args(given)
    if arguments.worker:
        serve(*json.loads(arguments.worker))
        return {}
    import torch

    result: Row = {"torch": torch.__version__, "machine": platform.machine(), "cores": torch.get_num_threads()}
    result["parts"] = {}
    for part in arguments.parts:
        result["parts"][part] = measure(part, arguments)
        if arguments.json and arguments.json != STDOUT:  # after each part, so that an interrupted run keeps what it has
            arguments.json.write_text(json.dumps(result, indent=1))
        if arguments.markdown:
            arguments.markdown.write_text(markdown(result))
    print(json.dumps(result, indent=1) if arguments.json == STDOUT else markdown(result))
    return result


if __name__ == "__main__":
    main()
