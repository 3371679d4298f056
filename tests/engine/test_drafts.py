import pytest

from corral.engine.drafts import Drafts


def test_what_followed_the_last_occurrence_of_the_longest_match_is_proposed():
    drafts = Drafts([1, 2, 3, 50, 9, 2, 3, 60, 61, 62, 1, 2, 3])
    assert drafts.propose(2, 0.0) == [50, 9]  # 1, 2, 3 stood before 50
    drafts = Drafts([1, 2, 3, 50, 1, 2, 3, 60, 1, 2, 3])
    assert drafts.propose(2, 0.0) == [60, 1]
    drafts = Drafts([2, 3, 60, 61, 62, 1, 2, 3])
    assert drafts.propose(2, 0.0) == [60, 61]


def test_nothing_is_proposed_where_nothing_repeats_or_no_place_is_left():
    assert Drafts([1, 2, 3, 4]).propose(5, 0.0) == []
    assert Drafts([7]).propose(5, 0.0) == []
    assert Drafts([1, 2, 5, 1, 2]).propose(0, 0.0) == []


def test_a_repetition_goes_on_beyond_the_end():
    assert Drafts([5, 1, 2, 3, 1, 2, 3]).propose(7, 0.0) == [1, 2, 3, 1, 2, 3, 1]


def test_only_what_is_likely_enough_is_proposed():
    drafts = Drafts([1, 2, 3, 4, 5, 1, 2])
    assert drafts.propose(9, 0.51) == []
    assert drafts.propose(9, 0.5) == [3]
    assert drafts.propose(9, 0.2) == [3, 4]


def follow(drafts, tokens, said):
    for token in said:
        drafts.propose(0, 1.0)
        tokens.append(token)


def test_chance_follows_what_comes_true_also_of_guesses_that_nothing_was_computed_for():
    tokens = [1, 2, 3, 1, 2, 3]
    drafts = Drafts(tokens)
    follow(drafts, tokens, [1, 2, 3] * 10)
    assert drafts.propose(3, 0.85) == [1, 2, 3]
    follow(drafts, tokens, [token for new in range(10, 20) for token in (1, 2, new)])
    drafts.propose(0, 1.0)
    assert drafts.chance < 0.4


def test_several_tokens_at_once_are_judged_up_to_the_first_that_was_wrong():
    tokens = [1, 2, 3, 4, 1, 2]
    drafts = Drafts(tokens)
    drafts.propose(9, 0.0)
    tokens += [3, 4, 9]  # right, right, wrong; the rest of the guess says nothing
    drafts.propose(9, 0.0)
    right, tried = 1.0, 2.0
    for hit in (1, 1, 0):
        right, tried = right * 0.9 + hit, tried * 0.9 + 1
    assert drafts.chance == pytest.approx(right / tried)


def test_a_very_long_prompt_is_searched_in_its_last_part_only():
    drafts = Drafts([9, 8, 7, *range(100, 6000), 9, 8])
    assert drafts.propose(3, 0.0) == []
    drafts = Drafts([*range(100, 6000), 9, 8, 7, *range(50), 9, 8])
    assert drafts.propose(3, 0.0) == [7, 0, 1]
