"""What a user reads about the rows of an iteration that were dropped."""

from spin.feedback.dropped_rows import describe_dropped
from spin.orchestration.memorisation_warning import describe_memorisation
from spin.run_dir.facts import PairsFacts


def test_dropped_rows_are_named_by_reason_the_most_frequent_first() -> None:
    shards = [PairsFacts(dropped={"cut": 1, "identical": 1500}), PairsFacts(dropped={"cut": 2})]
    assert describe_dropped(shards) == "dropped: 1,500 identical, 3 cut"
    assert describe_dropped([PairsFacts()]) == "none was dropped: no row was made"


def test_answers_equal_to_the_targets_are_a_warning_that_names_both_reasons_for_it() -> None:
    # 2 own rows and 5 replayed ones are kept; only the own ones count.
    shards = [PairsFacts(rows=7, replayed=5, dropped={"identical": 3, "cut": 1})]
    warning = describe_memorisation(shards)
    assert warning is not None
    assert warning.startswith("warning: 3 of 6 pairs had identical completions and were dropped")
    assert "it is right and little is left to learn" in warning
    assert "it has memorised the training set" in warning
    assert describe_memorisation([PairsFacts(rows=3, dropped={"identical": 3})]) is None
