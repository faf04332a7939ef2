"""Train with a judge that prefers the first place, in both orders and in one.

    python scripts/bench/planted_bias.py --seeds 2 3 4 --to outputs/planted_bias

The judge is an endpoint on this machine that follows a known rule: an answer without a needless
phrase wins with probability ½ + RULE against one with a phrase, and equal answers are even. The
biased judge adds BIAS to the probability of the answer in the first place.

    fair           a judge without bias, asked in both orders
    both_orders    a biased judge, asked in both orders: the bias cancels out
    one_order      the same, asked once: the bias goes into the training data

The ground truth is compared with each sample and stands in the first place. Six of ten ground
truths begin with a phrase, so that a judge who prefers the first place teaches the phrases. The
three runs of a seed begin with the same policy. The script prints the table of `spin compare`, and
may be interrupted and started again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from spin.data.builtin import CHATTER  # noqa: E402 (needs the path above)

RULE = 0.05
BIAS = 0.2
BIASES = {"fair": 0.0, "biased": BIAS}
"""Bias of the judge by the name of its model."""

LABELS = ("A", "B")


def judge(question: str, bias: float) -> float:
    """Return the probability of the label of the first answer.

    Args:
        question: A question of the template `plain`.
        bias: What is added for the answer in the first place.
    """
    answers = []
    for label in LABELS:
        start = question.index(f"\n{label}: ") + len(f"\n{label}: ")
        answers.append(question[start:].startswith(CHATTER))
    return 0.5 + RULE * (answers[1] - answers[0]) + bias


class Judge(BaseHTTPRequestHandler):
    """Answers each question with the probabilities of both labels."""

    def do_POST(self) -> None:
        """Reply to one request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        first = judge(body["messages"][0]["content"], BIASES[body["model"]])
        top = [{"token": LABELS[0], "logprob": math.log(first)}, {"token": LABELS[1], "logprob": math.log(1 - first)}]
        choice = {"message": {"content": LABELS[0]}, "logprobs": {"content": [{"top_logprobs": top}]}}
        reply = {"choices": [choice], "usage": {"prompt_tokens": 40, "completion_tokens": 1}}
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def describe_comparison(url: str, seeds: list[int], prompts: int) -> dict[str, Any]:
    """Return the settings of the comparison, as `spin compare` reads them."""
    shared = [
        "experiment=judge_dpo",
        f"judge.model={url}",
        "feedback.judged.contestants=truth_and_samples",
        "feedback.judged.pairs=truth",
        "feedback.judged.tie_band=0.02",
        f"data.limit={prompts}",
        "generation.samples_per_prompt=2",
        "training.batch_size=64",
        "training.steps=60",
        "baseline=null",
    ]
    methods = {
        "fair": ["judge.name=fair"],
        "both_orders": ["judge.name=biased"],
        "one_order": ["judge.name=biased", "judge.both_orders=false"],
    }
    return {"to": "", "seeds": seeds, "share_start": True, "shared": shared, "methods": methods}


def main() -> None:
    """Serve the judge and make the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--to", type=Path, default=Path("outputs/planted_bias"))
    # The port is in the config of the runs, which a second start continues.
    parser.add_argument("--port", type=int, default=8177)
    arguments = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    comparison = describe_comparison(f"http://127.0.0.1:{arguments.port}/v1", arguments.seeds, arguments.prompts)
    arguments.to.mkdir(parents=True, exist_ok=True)
    settings = arguments.to / "settings.yaml"
    settings.write_text(yaml.safe_dump(comparison))
    program = "from spin.cli.main import main; main()"
    words = ["compare", f"settings={settings}", f"to={arguments.to}"]
    raise SystemExit(subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
