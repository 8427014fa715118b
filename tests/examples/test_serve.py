"""examples/serve.py in a process without dplip, asked by a real client."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from helpers import finished

from dplip.data import load
from dplip.runs import load_run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CODE = """
import sys
sys.modules["dplip"] = None  # importing it fails
sys.path.insert(0, sys.argv[1])
import serve
found = serve.server(serve.Service(sys.argv[2]), 0)
print(found.server_port, flush=True)
found.serve_forever()
"""
X = load("digits").test.tensors[0][:20]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load_run(finished.digits(tmp_path_factory.mktemp("served") / "digits"))


@pytest.fixture(scope="module")
def address(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    run.export(path)
    command = [sys.executable, "-c", CODE, str(EXAMPLES), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        yield f"http://127.0.0.1:{port}/predict"
        process.terminate()


def post(address: str, body: bytes) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data=body), timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        return refused.code, json.loads(refused.read())


def test_a_client_gets_the_label_and_a_radius_that_the_library_also_certifies(run, address):
    expected = run.predict(X)
    for k, x in enumerate(X):
        code, answer = post(address, json.dumps({"input": x.tolist()}).encode())
        assert code == 200 and answer["norm"] == 2
        assert answer["label"] == expected.labels[k]
        assert answer["score"] == pytest.approx(float(expected.scores[k].max()), abs=1e-5)
        assert expected.radii[k] - 0.002 <= answer["radius"] <= expected.radii[k]


@pytest.mark.parametrize(
    "body, told",
    [
        (b"junk", "Expecting value"),
        (b"{}", "give"),
        (b'{"input": [1, 2]}', "the model takes [1, 8, 8]"),
        (json.dumps({"input": torch.full((1, 8, 8), 1.5).tolist()}).encode(), "lie in [0.0, 1.0]"),
        (json.dumps({"input": torch.full((1, 8, 8), torch.nan).tolist()}).encode(), "lie in [0.0, 1.0]"),
        (b"", "0 bytes"),
    ],
)
def test_what_the_model_does_not_take_is_refused_in_a_sentence(address, body, told):
    code, answer = post(address, body)
    assert code == 400 and told in answer["error"]
    assert post(address.replace("predict", "other"), b"{}")[0] == 400
