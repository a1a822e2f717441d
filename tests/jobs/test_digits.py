"""The second job's own parts."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

import digits


def test_exit_codes_of_the_command_line() -> None:
    for arguments, code, said in ((["--help"], 0, "--learning-rates"), (["--folds", "two"], 2, "invalid int value")):
        ran = subprocess.run([sys.executable, str(digits.__file__), *arguments], capture_output=True, text=True)
        assert ran.returncode == code and said in ran.stdout + ran.stderr


def test_images_and_network(spark: Any) -> None:
    images = digits.load_digits(spark)
    assert images.count() == 1797 and images.columns == [*digits.PIXELS, "label", "id"]
    assert images.agg({"pixel_3_4": "max", "label": "max"}).first().asDict() == {"max(pixel_3_4)": 16, "max(label)": 9}
    model = digits.build_model()
    assert model.input_shape == (None, 8, 8, 1) and model.output_shape == (None, 10)


def test_a_server_is_asked_for_the_images_in_their_order(spark: Any) -> None:
    class Sums(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            images = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["instances"]
            body = json.dumps({"predictions": np.sum(images, axis=(1, 2)).tolist()}).encode()
            self.send_response(200 if self.path == "/v1/models/digits:predict" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    images = digits.load_digits(spark).where("id < 20").repartition(3, "id")
    with HTTPServer(("127.0.0.1", 0), Sums) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        answer = digits.served(images, f"http://127.0.0.1:{server.server_port}/v1/models/digits")
        server.shutdown()
    rows = sorted(images.collect(), key=lambda r: r.id)
    np.testing.assert_allclose(answer[:, 0], [sum(r[c] for c in digits.PIXELS) for r in rows])
