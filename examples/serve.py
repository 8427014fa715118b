"""Serve an exported run, with a certified radius for every prediction, by torch and the standard library alone.

    python -c "import dplip; dplip.load_run('runs/digits').export('digits.pt2')"
    python examples/serve.py digits.pt2 --port 8000
    curl -d '{"input": [[[0, 0.3, ...]]]}' http://localhost:8000/predict

The answer is {"label": 3, "score": 0.82, "radius": 0.21, "norm": 2}: no input closer to this one than the radius has
another label. Nothing of dplip is imported; the radius follows from the slopes and roundings in the JSON file beside
the model, by the formula of docs/after-training.md.
"""

import argparse
import json
import math
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

MOST_BYTES = 10_000_000


class Service:
    """An exported model, and what certifies its predictions."""

    def __init__(self, path: str | Path) -> None:
        self.about = json.loads(Path(path).with_suffix(".json").read_text())
        self.model = torch.export.load(path).module()

    def answer(self, request: Any) -> dict[str, Any]:
        """The answer to a request; ValueError: what is wrong with it."""
        declared = self.about["input"]
        try:
            x = torch.tensor(request["input"], dtype=getattr(torch, declared["dtype"]))
        except (KeyError, TypeError, ValueError) as wrong:
            raise ValueError(f'give {{"input": numbers}} of shape {declared["shape"]} ({wrong})') from None
        if list(x.shape) != declared["shape"]:
            raise ValueError(f"input of shape {list(x.shape)}: the model takes {declared['shape']}")
        if not bool(((x >= declared["low"]) & (x <= declared["high"])).all()):  # NaN is refused, too
            raise ValueError(f"input: its numbers lie in [{declared['low']}, {declared['high']}]")
        with torch.no_grad():
            scores = self.model(x[None])[0].tolist()
        label = int(scores[0] > 0) if len(scores) == 1 else scores.index(max(scores))
        found = self.about["certificate"]
        radius = None if "why" in found else certified_radius(scores, found)
        return {"label": label, "score": scores[min(label, len(scores) - 1)], "radius": radius, "norm": found["norm"]}


def certified_radius(scores: list[float], certificate: dict[str, Any]) -> float:
    """The distance below which no change of the input changes the label."""
    slopes, rounding = certificate["slopes"], certificate["rounding"]
    if not all(map(math.isfinite, scores)):
        return 0.0
    if len(scores) == 1:
        pairs = [(abs(scores[0]), rounding[0][0], slopes[0][0])]
    else:
        y = scores.index(max(scores))
        pairs = [(scores[y] - z, rounding[y][j], slopes[y][j]) for j, z in enumerate(scores) if j != y]
    least: float = certificate["largest"]
    for margin, lost, slope in pairs:
        left = margin - lost
        least = min(least, left / slope if slope > 0 else (math.inf if left > 0 else 0.0))
    return max(0.0, least)


def server(service: Service, port: int) -> ThreadingHTTPServer:
    """A server on this machine; port 0: any that is free."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                if self.path != "/predict":
                    raise ValueError("post to /predict")
                length = int(self.headers.get("Content-Length", 0))
                if not 0 < length <= MOST_BYTES:
                    raise ValueError(f"a request of {length} bytes: give at most {MOST_BYTES}")
                self.reply(200, service.answer(json.loads(self.rfile.read(length))))
            except (ValueError, RecursionError) as wrong:  # json's errors are among them
                self.reply(400, {"error": str(wrong)})

        def reply(self, code: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not logged: they may be private."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve an exported run.")
    parser.add_argument("model", type=Path, help="the file that export wrote, NAME.pt2, with NAME.json beside it")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    print(f"http://127.0.0.1:{options.port}/predict")
    server(Service(options.model), options.port).serve_forever()


if __name__ == "__main__":
    main()
