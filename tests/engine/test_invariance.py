"""A request gives the same reply alone, in company, in any chunks, from a hot cache, after preemption."""

from functools import partial

import pytest

from batches import Part, blocks_for, make_batch, step
from corral.engine.engine import Engine, EngineOptions
from corral.executors.reference import ReferenceExecutor
from corral.models.table import build_program
from corral.types import SamplingParams, Scores
from corral.weights.gguf_source import GGUFSource
from gguf_files import tiny_gemma3, tiny_llama

SEQUENCES, REPLY = 20, 24
FAMILIES = {
    "llama": tiny_llama,
    "gemma3": tiny_gemma3,
    "windows": partial(tiny_llama, metadata={"llama.attention.sliding_window": 20}),
}


def native(program, **options):
    pytest.importorskip("corral._native", reason="the native module is not built", exc_type=ImportError)
    from corral.executors.native import NativeExecutor

    return NativeExecutor(program, max_sequences=SEQUENCES, threads=2, **options)


EXECUTORS = {"reference": ReferenceExecutor, "native": native}


@pytest.fixture(scope="module", params=FAMILIES)
def program(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    return build_program(GGUFSource.open(FAMILIES[request.param](path)))


@pytest.fixture(params=EXECUTORS)
def executor_name(request):
    return request.param


def make(name, program, num_blocks=200, batch_tokens=64, drafts=True):
    num_blocks *= len(program.cache.groups)
    executor = EXECUTORS[name](program, num_blocks=num_blocks, max_tokens=64)
    options = EngineOptions(
        context_length=program.context_length,
        vocab_size=program.vocab_size,
        batch_tokens=batch_tokens,
        max_sequences=SEQUENCES,
        drafts=drafts,
    )
    return Engine(executor, options)


def requests(vocab_size):
    """Prompts that share beginnings, some greedy and some sampled, some scored."""
    for id in range(SEQUENCES):
        prompt = [(7 * i + id % 4) % vocab_size for i in range(3 + 5 * id % 67)]
        yield (
            id,
            prompt,
            SamplingParams(
                temperature=0.9 if id % 3 == 2 else 0,
                seed=id,
                repetition_penalty=1.1 if id % 5 == 1 else 1.0,
                max_tokens=REPLY,
            ),
            Scores(logprobs=3, prompt_logprobs=0 if id % 7 == 3 else None),
        )


def run(engine, wanted):
    for request in wanted:
        engine.add(*request)
    replies = {id: ([], []) for id, *_ in wanted}
    while engine.has_work:
        for output in engine.step():
            assert not output.error
            tokens, scores = replies[output.id]
            tokens += output.tokens
            scores += [score for score in output.prompt_logprobs if score] + output.logprobs
        engine.check()
    return replies


def assert_same(name, one, other):
    """Bit for bit where the executor promises it; numpy's sums differ with the number of rows."""
    for id in one:
        assert one[id][0] == other[id][0], f"tokens of request {id}"
        if name == "native":
            assert one[id][1] == other[id][1], f"log-probs of request {id}"
        else:
            values = [score.logprob for score in other[id][1]]
            assert [score.logprob for score in one[id][1]] == pytest.approx(values, abs=1e-4)


@pytest.fixture
def alone(executor_name, program):
    """Each request on its own, one after the other, with nothing cached."""
    replies = {}
    engine = make(executor_name, program)
    for request in requests(program.vocab_size):
        cold = Engine(engine.executor, engine.options)
        replies |= run(cold, [request])
    return replies


def test_replies_do_not_depend_on_how_they_are_computed(executor_name, program, alone):
    wanted = list(requests(program.vocab_size))
    for batch_tokens in (64, 20, 7):
        engine = make(executor_name, program, batch_tokens=batch_tokens)
        assert_same(executor_name, alone, run(engine, wanted))
        assert_same(executor_name, alone, run(engine, wanted))  # with the cache hot
    short = make(executor_name, program, num_blocks=14, drafts=False)
    assert_same(executor_name, alone, run(short, wanted))
    assert short.occupancy.preemptions > 0


def test_a_context_far_beyond_the_window_is_read_as_if_every_block_were_kept(executor_name, program):
    """Sequences of 450 tokens where windows are of 20 or 32, in a pool that holds two such ones at most."""
    vocab = program.vocab_size
    wanted = [
        (
            id,
            [(11 * i + i // 7 * id) % vocab for i in range(400)],
            SamplingParams(temperature=0, max_tokens=50),
        )
        for id in range(4)
    ]
    engine = make(executor_name, program, num_blocks=58)
    for _ in range(2):  # then with what is left in the cache
        replies = run(engine, wanted)
        for id, prompt, _ in wanted:
            assert replies[id][0] == keeping_everything(executor_name, program, prompt, 50)


def keeping_everything(name, program, prompt, count):
    """The same greedy reply from the executor alone, with a block of its own for every position."""
    groups, length = len(program.cache.groups), len(prompt) + count
    blocks = blocks_for(length)
    executor = EXECUTORS[name](program, num_blocks=len(blocks) * groups, max_tokens=512)
    known, computed = list(prompt), 0
    while len(known) < length:
        part = Part(known[computed:], blocks, computed, rows=[len(known) - computed - 1])
        computed = len(known)
        known += step(executor, make_batch([part], groups=groups)).tokens.tolist()
    return known[len(prompt) :]


@pytest.mark.model
def test_replies_of_a_real_model_do_not_depend_on_company(smollm2_path):
    program = build_program(GGUFSource.open(smollm2_path))
    text = [(31 * i) % 40000 + 100 for i in range(90)]
    wanted = [
        (id, text[: 20 + 9 * id], SamplingParams(temperature=0, max_tokens=16), Scores(5)) for id in range(8)
    ]
    engine = make("native", program)
    alone = {}
    for request in wanted:
        alone |= run(Engine(engine.executor, engine.options), [request])
    assert_same("native", alone, run(engine, wanted))
    assert_same("native", alone, run(engine, wanted))
    assert_same("native", alone, run(make("native", program, num_blocks=14, batch_tokens=33), wanted))
