"""The one path of generated tokens, over a scripted engine."""

import asyncio

from corral.server.generate import Collected, generate
from corral.server.generation import Generation
from corral.types import Ending, SamplingParams
from fake_engine import EOS, FakePool, FakeStore


def test_seeds_of_several_replies_wrap_at_64_bits() -> None:
    pool = FakePool(FakeStore("tiny"))
    wanted = Generation(pool.store.find("tiny"), ("x",), SamplingParams(seed=2**64 - 2, max_tokens=2), n=4)
    asyncio.run(generate(pool, wanted, Collected().take))
    assert sorted(params.seed for _, params in pool.engine.seen) == [0, 1, 2**64 - 2, 2**64 - 1]


def test_one_reply_keeps_the_seed_as_it_was_given() -> None:
    pool = FakePool(FakeStore("tiny"))
    wanted = Generation(pool.store.find("tiny"), ("x",), SamplingParams(seed=-3, max_tokens=2))
    asyncio.run(generate(pool, wanted, Collected().take))
    assert [params.seed for _, params in pool.engine.seen] == [-3]


def test_tokens_that_end_a_reply_are_stop_tokens_unless_they_are_ignored() -> None:
    pool = FakePool(FakeStore("tiny"))
    for ignored in (False, True):
        params = SamplingParams(stop_token_ids=(7,), max_tokens=2)
        wanted = Generation(pool.store.find("tiny"), ("x",), params, Ending(ignore_eos=ignored))
        asyncio.run(generate(pool, wanted, Collected().take))
    assert [params.stop_token_ids for _, params in pool.engine.seen] == [(7, EOS), (7,)]


def test_token_that_the_model_cannot_say_is_no_stop_token() -> None:
    pool = FakePool(FakeStore("tiny"))
    pool.tokenizer.eos_ids = frozenset({EOS, 5000})
    wanted = Generation(pool.store.find("tiny"), ("x",), SamplingParams(max_tokens=2))
    asyncio.run(generate(pool, wanted, Collected().take))
    assert [params.stop_token_ids for _, params in pool.engine.seen] == [(EOS,)]
