"""Coverage-guided fuzzing of the file readers, by atheris: whatever a file holds, it is read or refused by a sentence.

    python tests/attacks/fuzz_readers.py [--runs 50000] [--only ledger] [--seed 1]

Runs each reader in a process of its own, for so many inputs in all, and exits non-zero if anything but a DPLipError
was raised; the input is kept in the folder it was run in. Needs the extra ``fuzz``.
"""

import argparse
import copy
import functools
import importlib
import importlib.util
import json
import math
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

INSTRUMENTED = [
    *(f"dplip.records.{name}" for name in ("ledger", "ledger_lines", "files", "checkpoint", "report")),
    *("dplip.data.schema", "dplip.accounting.events"),
]
if "--here" in sys.argv:  # before all else, so that atheris sees which branches an input takes
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        for module in INSTRUMENTED:
            importlib.import_module(module)

import torch  # noqa: E402
from safetensors.torch import save  # noqa: E402

from dplip.accounting import FixedSizeEvent, GaussianEvent  # noqa: E402
from dplip.data import read_schema  # noqa: E402
from dplip.errors import DPLipError  # noqa: E402
from dplip.records import Checkpoint, Ledger, ledger_lines, read_report  # noqa: E402
from dplip.records import checkpoint as checkpoints  # noqa: E402
from dplip.records.ledger import begun  # noqa: E402
from dplip.records.report import FIELDS  # noqa: E402


def ledger(folder: Path, content: bytes) -> None:
    """As it is, and with checksums that are right, whatever the lines say."""
    path = folder / "ledger.jsonl"
    for whole in (content, sealed(content)):
        path.write_bytes(whole)
        begun(path)
        record = Ledger.read(path)
        if len(record.events) < 3 and len(content) % 16 == 0:  # slow for noise never seen before
            record.epsilon(1e-5)


def sealed(content: bytes) -> bytes:
    chain, whole = "", b""
    for line in content.splitlines():
        try:
            record = json.loads(line)
            record.pop("chain", None)
            line, chain = ledger_lines.seal(record, chain)
        except (ValueError, TypeError, AttributeError, RecursionError):
            line += b"\n"
        whole += line
    return whole


def checkpoint(folder: Path, content: bytes) -> None:
    """As a file, and as the state in one whose checksum is right."""
    path = folder / "checkpoint.safetensors"
    tensors = {"0.model.w": torch.zeros(2)}
    text = content.decode(errors="replace")
    path.write_bytes(save(tensors, {"dplip": text, "digest": checkpoints._digest(text, tensors)}))
    read = refused(Checkpoint.read, path)
    path.write_bytes(content)
    refused(Checkpoint.read, path)
    assert read is None or isinstance(read, Checkpoint)


def report(folder: Path, content: bytes) -> None:
    (folder / "report.json").write_bytes(content)
    assert isinstance(read_report(folder), dict)


def schema(folder: Path, content: bytes) -> None:
    path = folder / "schema.json"
    path.write_bytes(content)
    found = read_schema(path)
    assert len(found.features) >= len(found.numeric)
    assert len(found.directions) == len(found.features)


READERS: Mapping[str, Callable[[Path, bytes], None]] = {
    "ledger": ledger,
    "checkpoint": checkpoint,
    "report": report,
    "schema": schema,
}


def refused(read: Callable[..., object], *arguments: object) -> object:
    """What is read, or None if it was refused as it should be."""
    try:
        return read(*arguments)
    except DPLipError:
        return None


def seeds() -> dict[str, list[bytes]]:
    """A valid file of each kind, to begin from."""
    lines = []
    for events, relation in (
        ([GaussianEvent(1.0, 0.1)] * 2, "add_remove"),
        ([FixedSizeEvent(2.0, 5, 50)], "replace_one"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ledger.jsonl"
            with Ledger(path, delta=1e-5, neighboring=relation, facts={"n": 1}, run="r") as written:
                for event in events:
                    written.append(event)
            lines.append(path.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"
        state: dict[str, Any] = {name: {} for name in Checkpoint.__dataclass_fields__}
        state |= {"run": "r", "steps": 2, "chain": "c", "seconds": 1.5, "average": None, "model": {"w": torch.zeros(2)}}
        state |= {"accountant": {"history": [(1.0, 0.1, 2)], "mechanism": "rdp"}, "sampler": {"sample_rate": 0.1}}
        Checkpoint(**state).write(path)
        whole = path.read_bytes()
        packed = {name: checkpoints._pack(value, {}, name) for name, value in state.items()}
    metadata = json.dumps({"checkpoint": "dplip", "version": checkpoints._VERSION, "state": packed})
    full: dict[str, dict[str, Any]] = {section: dict.fromkeys(names, 0.5) for section, names in FIELDS.items()}
    full["certified"] |= {"radii": [0.0, 0.1], "accuracy": [0.5, 0.4]}
    full["privacy"] |= {"accountant": "rdp", "neighboring": "add_remove"}
    columns = {
        "age": {"kind": "numeric", "low": 0, "high": 100.0, "monotone": 1, "missing": True},
        "job": {"kind": "categorical", "levels": ["a", "b", 3]},
        "own": {"kind": "boolean"},
    }
    table = {"target": "own", "source": "public", "columns": columns}
    return {
        "ledger": lines,
        "checkpoint": [whole, metadata.encode()],
        "report": [json.dumps(full).encode()],
        "schema": [json.dumps(table).encode()],
    }


@functools.cache
def names() -> list[str]:
    """What fields of these kinds of files are called, and what kinds of value there are."""
    found = {name for fields in FIELDS.values() for name in fields} | set(FIELDS) | set(Checkpoint.__dataclass_fields__)
    found |= {"ledger", "dplip", "version", "facts", "step", "torn", "sample_rate", "batch_size", "size", "replace_one"}
    found |= {"items", "tuple", "tensor", "float", "columns", "target", "kind", "numeric", "categorical", "levels"}
    found |= {"low", "high", "log", "monotone", "missing", "source", "observed", "boolean"}
    return sorted(found)


def words() -> list[str]:
    """What files of these kinds are made of, as they are written."""
    literals = ["NaN", "Infinity", "-1", "1e400", "1e-320", "10000000000000000000000", "null", "true", "{}", "[]", '""']
    return [*(json.dumps(name) for name in names()), *literals, "[" * 2000, '{"a":' * 2000]


def quoted(word: str) -> str:
    return "".join(rf"\x{byte:02x}" for byte in word.encode())


ODD: list[Any] = [
    *(None, True, -1, 0, 1, 0.5, -0.0, 1e-320, 10**30, math.nan, math.inf),
    *("", "a", "numeric", "boolean", [], {}, [[]]),
]
"""What a value is replaced by; beside any other value of the same file."""


def places(value: object) -> list[tuple[Any, Any]]:
    """Every entry of nested JSON, as its container and its place there."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def altered(content: bytes, chance: random.Random) -> bytes:
    """A file of JSON lines, with an entry of a line replaced, left out, or moved to another name.

    Raises:
        ValueError: the line that was chosen is no JSON, or holds nothing.
    """
    lines = content.splitlines() or [b""]
    number = chance.randrange(len(lines))
    record = json.loads(lines[number])
    for _ in range(chance.randint(1, 3)):
        found = places(record)
        if not found:
            raise ValueError("nothing to alter")
        (container, key), other = chance.choice(found), chance.choice(found)
        value = chance.choice([*ODD, other[0][other[1]], copy.deepcopy(record)])
        action = chance.choice(["replace", "leave out", "rename"])
        if action == "leave out":
            del container[key]
        elif action == "rename" and isinstance(container, dict):
            container[chance.choice(names())] = container.pop(key)
        else:
            container[key] = value
    lines[number] = json.dumps(record).encode()
    return b"\n".join(lines) + b"\n" * content.endswith(b"\n")


def mutated(content: bytes, most: int, seed: int) -> bytes:
    """Every other time a change of structure, which bytes changed by themselves do not get to."""
    chance = random.Random(seed)
    if chance.random() < 0.5:
        try:
            return altered(bytes(content), chance)[:most]
        except (ValueError, RecursionError):
            pass
    return bytes(atheris.Mutate(content, most))


def fuzz(name: str, runs: int, seed: int) -> None:
    """Fuzz one reader in this process, which ends with it."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds()[name]):
        (corpus / str(number)).write_bytes(content)
    dictionary = folder / "words"
    dictionary.write_text("".join(f'"{quoted(word)}"\n' for word in words() if len(word) < 60))
    read = functools.partial(refused, READERS[name], folder)
    flags = [f"-runs={runs}", f"-seed={seed}", "-max_len=4000", f"-dict={dictionary}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], read, custom_mutator=mutated)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50_000, help="inputs for each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=READERS, default=None)
    parser.add_argument("--here", action="store_true", help="in this process; needs --only")
    arguments = parser.parse_args()
    if arguments.here:
        fuzz(arguments.only, arguments.runs, arguments.seed)
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed (the extra 'fuzz'): the readers are fuzzed by hypothesis alone")
        return 0
    failed = 0
    for name in [arguments.only] if arguments.only else READERS:
        words = ["--here", "--only", name, "--runs", str(arguments.runs), "--seed", str(arguments.seed)]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        found = [
            line
            for line in said.splitlines()
            if line.startswith("stat::number_of_executed") or "INITED" in line or "DONE" in line
        ]
        print(f"{name:12} {'survived' if done.returncode == 0 else 'FAILED'}  {'; '.join(found)}", flush=True)
        if done.returncode != 0:
            failed += 1
            print(said[-4000:], flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
