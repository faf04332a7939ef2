"""Requests to an OpenAI-compatible endpoint: one question, and the likely next tokens."""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spin.config.judge import JudgeConfig
from spin.errors import ConfigError, single_line
from spin.feedback.judge_template import Question, break_control_texts
from spin.feedback.reply_file import EndpointReply

TOP_LOGPROBS = 20
"""Number of most likely tokens whose log-probabilities an endpoint returns."""

MAX_WAIT_SECONDS = 60.0
"""Longest time between two attempts."""


class NoReply(Exception):
    """An endpoint gave no reply to a question, after all attempts."""


class Secret:
    """A text that is in no message, whatever shows it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "Secret()"


def read_key(settings: JudgeConfig) -> Secret:
    """Return the key of the endpoint, empty if it needs none.

    Raises:
        ConfigError: The environment variable that should hold it is not set.
    """
    if settings.api_key_env is None:
        return Secret("")
    text = os.environ.get(settings.api_key_env, "").strip()
    if not text:
        raise ConfigError(f"judge.api_key_env={settings.api_key_env}: the environment has no such variable; set it")
    return Secret(text)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Nothing but the configured URL is contacted."""

    def redirect_request(self, *_: Any) -> None:
        """Return no request, so that a redirection is an error."""


@dataclass(frozen=True)
class Endpoint:
    """An endpoint with its key."""

    settings: JudgeConfig
    key: Secret

    def ask(self, question: Question, rationale: str = "") -> EndpointReply:
        """Return the label probabilities after a question; see `_send_often`.

        Args:
            question: The question.
            rationale: What the judge has written before its label.
        """
        settings = self.settings
        messages = [{"role": "user", "content": question.text}]
        more: dict[str, Any] = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        if settings.prefill:
            # As vLLM and SGLang take it: the last message is continued, and no turn is opened.
            messages.append({"role": "assistant", "content": rationale + question.ending})
            more |= {"continue_final_message": True, "add_generation_prompt": False}
        elif rationale:
            messages += [{"role": "assistant", "content": rationale}, {"role": "user", "content": question.ending}]
        else:
            messages = [{"role": "user", "content": question.with_ending}]
        return self._send_often(messages, more, self._read_labels)

    def write_rationale(self, question: Question) -> EndpointReply:
        """Return what the judge writes before its label; see `_send_often`."""
        messages = [{"role": "user", "content": question.text}]
        more = {"max_tokens": self.settings.rationale_tokens}
        return self._send_often(messages, more, self._read_text)

    def _send_often(
        self, messages: list[dict[str, str]], more: dict[str, Any], read: Callable[[Any], EndpointReply]
    ) -> EndpointReply:
        """Send a request; repeat a failed attempt as often as configured.

        Args:
            messages: The turns.
            more: Further keys of the request.
            read: Returns what is kept of the JSON of the reply.

        Raises:
            NoReply: No attempt gave a reply.
            ConfigError: The endpoint refuses the key or the request, or its reply has no
                log-probabilities: to ask again would not help.
        """
        problem = ""
        for attempt in range(self.settings.retries + 1):
            if attempt:
                # Twice as long each time, and not at the same moment as the other requests.
                time.sleep(min(MAX_WAIT_SECONDS, 2.0 ** (attempt - 2)) * random.uniform(0.5, 1.0))
            try:
                return read(self._send(messages, more))
            except urllib.error.HTTPError as error:
                if error.code != 429 and error.code < 500:
                    raise self._refused(error) from None
                problem = f"status {error.code}"
            except (OSError, http.client.HTTPException) as error:
                # Time-outs and lost connections; urllib puts the reason into an error of its own.
                problem = single_line(str(getattr(error, "reason", error))) or type(error).__name__
        raise NoReply(problem)

    def _send(self, messages: list[dict[str, str]], more: dict[str, Any]) -> Any:
        """Send one request; returns the JSON of the reply."""
        settings = self.settings
        body: dict[str, Any] = {"model": settings.name, "messages": messages, "temperature": 0, **more}
        headers = {"Content-Type": "application/json"}
        if self.key.text:
            headers["Authorization"] = f"Bearer {self.key.text}"
        assert settings.model is not None
        url = f"{settings.model.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        # Without the proxies of the environment: they would see the key.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)
        with opener.open(request, timeout=settings.timeout) as response:
            content = response.read()
        try:
            return json.loads(content)
        except ValueError:
            raise self._unusable("no JSON") from None

    def _read_text(self, reply: Any) -> EndpointReply:
        """Return the text of a reply, and its tokens."""
        try:
            text = str(reply["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError):
            raise self._unusable("no text (choices[0].message.content)") from None
        return _make_reply({}, reply, break_control_texts(text.strip()))

    def _read_labels(self, reply: Any) -> EndpointReply:
        """Return the label probabilities of a reply, and its tokens."""
        try:
            candidates = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            logps = [(str(candidate["token"]), float(candidate["logprob"])) for candidate in candidates]
        except (KeyError, IndexError, TypeError, ValueError):
            raise self._unusable("no log-probabilities (choices[0].logprobs.content[0].top_logprobs)") from None
        label_logps: dict[str, float] = {}
        for token, logp in logps:
            label = token.strip()
            if label in self.settings.reply_labels:
                label_logps[label] = add_logps(label_logps.get(label), logp)
        return _make_reply(label_logps, reply, "")

    def _refused(self, error: urllib.error.HTTPError) -> ConfigError:
        """Return the error of a request that is refused whenever it is sent."""
        url = self.settings.model
        if error.code in (401, 403):
            return ConfigError(
                f"judge.model={url} refuses the key (status {error.code}); "
                "name the environment variable with a valid one in judge.api_key_env"
            )
        said = single_line(error.read(2000).decode(errors="replace"))[:300]
        if self.key.text:
            said = said.replace(self.key.text, "…")
        hint = "check judge.model and judge.name"
        if error.code in (400, 422):
            hint = "if it does not continue a begun reply, set judge.prefill=false"
        return ConfigError(f"judge.model={url} refuses a request with status {error.code} ({said}); {hint}")

    def _unusable(self, found: str) -> ConfigError:
        """Return the error of a reply that nothing can be read from."""
        return ConfigError(
            f"judge.model={self.settings.model} replies with {found}; expected an OpenAI-compatible endpoint that "
            f"supports logprobs=true and top_logprobs={TOP_LOGPROBS}"
        )


def _make_reply(label_logps: dict[str, float], reply: Any, text: str) -> EndpointReply:
    """Return a reply with the tokens that the JSON says were used."""
    usage = reply.get("usage") or {}
    prompt_tokens = int(usage.get("prompt_tokens", 0))
    return EndpointReply(label_logps, prompt_tokens, int(usage.get("completion_tokens", 0)), text)


def add_logps(first: float | None, second: float) -> float:
    """Return the log of the sum of two probabilities; `first` is None if it is 0."""
    if first is None:
        return second
    larger = max(first, second)
    return larger + math.log1p(math.exp(min(first, second) - larger))
