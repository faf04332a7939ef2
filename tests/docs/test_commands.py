"""Every command, config key and link of the README and the pages in docs is valid."""

import os
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from spin.cli.commands import COMMANDS as SPIN_COMMANDS
from spin.cli.commands import parse_arguments
from spin.cli.help_text import describe_topic
from spin.config.key_docs import describe_groups
from spin.config.objective import OBJECTIVE_CONFIGS
from spin.config.overrides import adapt_override
from spin.config.run import CONF_DIR, RunConfig, fingerprint, flatten, register
from spin.config.schedule import apply_schedule
from spin.config.unknown_keys import check_keys

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED_PAGES = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FILE_ENDINGS = ("csv", "json")


def list_commands() -> list[str]:
    """Return every line of every bash block, without its comment."""
    commands = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            commands += [line.split("  #")[0].strip() for line in lines if line.strip()]
    return list(dict.fromkeys(commands))


def list_keys() -> list[str]:
    """Return every config key with a dot that stands in backticks."""
    keys = set()
    groups = set(OmegaConf.structured(RunConfig))
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:=[^`]*)?`", text):
            if key.split(".")[0] in groups and not key.endswith(FILE_ENDINGS):
                keys.add(key)
    return sorted(keys)


def list_links() -> list[tuple[str, str]]:
    """Return (page, target) of every link to a file."""
    links = []
    for page in LINKED_PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if "://" not in target:
                links.append((str(page.relative_to(ROOT)), target))
    return links


def compose_run(words: list[str]) -> RunConfig:
    """Compose the config of a run, check its keys and values, and apply its schedule."""
    # In a sweep the first value stands for all.
    if "-m" in words:
        words = [word.split(",")[0] for word in words]
    overrides = [word for word in words if "=" in word]
    overrides = [adapt_override(word) for word in overrides]
    with initialize_config_dir(str(CONF_DIR.resolve()), version_base="1.3"):
        cfg = compose("config", overrides=overrides)
        check_keys(cfg)
        assert not OmegaConf.missing_keys(cfg)
        config = OmegaConf.to_object(cfg)
        assert isinstance(config, RunConfig)
        for index in range(config.iterations):
            apply_schedule(config, index, overrides)
    return config


@pytest.mark.parametrize("command", list_commands())
def test_every_printed_command_names_files_and_keys_that_exist(command: str) -> None:
    register()
    words = shlex.split(command)
    if words[0] == "bash":
        assert os.access(ROOT / words[1], os.X_OK)
    elif words[0] == "source":
        # scripts/setup.sh makes it.
        assert words[1:] == [".venv/bin/activate"]
    elif words[0] == "python":
        source = (ROOT / words[1]).read_text()
        for option in [word for word in words[2:] if word.startswith("--")]:
            assert option == "--help" or f'"{option}"' in source
    elif words[:2] == ["spin", "help"]:
        assert describe_topic(words[2])
    elif words[1] in SPIN_COMMANDS:
        arguments = SPIN_COMMANDS[words[1]].arguments
        assert isinstance(parse_arguments(words[1], arguments, words[2:]), arguments)
    else:
        assert words[0] == "spin", f"no test knows {command!r}"
        assert words[1] in ("run", "check", "reward"), f"no test knows {command!r}"
        if "--help" not in words:
            compose_run(words[2:])


def test_no_printed_command_is_refused_because_another_one_has_taken_its_run_directory() -> None:
    register()
    taken: dict[str, tuple[dict[str, str], str]] = {}
    for command in list_commands():
        words = shlex.split(command)
        if words[:2] not in (["spin", "run"], ["spin", "reward"], ["spin", "check"]):
            continue
        if {"--help", "--cfg", "-m"} & set(words):
            continue
        config = compose_run(words[2:])
        keys = fingerprint(config)
        # A run with other keys in the same directory is refused.
        other, first = taken.setdefault(config.run_dir, (keys, command))
        assert keys == other, f"{command!r} needs another run_dir than {first!r}"


@pytest.mark.parametrize("key", list_keys())
def test_every_config_key_in_the_text_exists(key: str) -> None:
    values = OmegaConf.to_container(OmegaConf.structured(RunConfig))
    assert isinstance(values, dict)
    known = set(flatten(values))
    for kind in OBJECTIVE_CONFIGS.values():
        known |= {f"objective.{name}" for name in OmegaConf.structured(kind)}
    # A free dict that is empty has no flat keys.
    free_dicts = {"model.chat_template_kwargs", "reward_model.subset_counts"}
    assert key in known | free_dicts | {group.name for group in describe_groups()}


@pytest.mark.parametrize(("page", "target"), list_links())
def test_every_link_to_a_file_resolves(page: str, target: str) -> None:
    path = target.split("#")[0]
    assert ((ROOT / page).parent / path).exists()
