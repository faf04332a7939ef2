"""The ledger: what a crash can leave behind, and what is refused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spin.run_dir.ledger import Ledger, LedgerError


def test_units_survive_a_reopen_and_the_last_line_of_a_name_wins(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("iterations/000/samples/0", rows=3)
    ledger.append("iterations/000/samples/0", rows=4)
    again = Ledger(tmp_path / "ledger.jsonl")
    assert again.get("iterations/000/samples/0") == {"unit": "iterations/000/samples/0", "rows": 4}
    assert "iterations/000/samples/1" not in again


def test_a_torn_last_line_is_dropped_and_the_next_append_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"unit": "a"}\n{"unit": "b", "sha')
    ledger = Ledger(path)
    assert "a" in ledger
    assert "b" not in ledger
    ledger.append("c")
    assert path.read_bytes() == b'{"unit": "a"}\n{"unit": "c"}\n'


def test_several_threads_may_append_while_another_reads(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)

    def append(number: int) -> int:
        ledger.append(f"unit/{number}", number=number)
        return len(ledger.family("unit/"))

    with ThreadPoolExecutor(8) as threads:
        seen = list(threads.map(append, range(200)))
    assert max(seen) == 200
    assert sorted(record["number"] for record in Ledger(path).family("unit/")) == list(range(200))


def test_an_unreadable_line_in_the_middle_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"unit": "a"}\nrubbish\n{"unit": "b"}\n')
    with pytest.raises(LedgerError, match="ledger.jsonl:2 is no ledger line"):
        Ledger(path)
