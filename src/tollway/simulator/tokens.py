"""Token arithmetic: what a prompt costs, what an answer says, when each token is due, what the prefix cache
remembers.

One token is four bytes of UTF-8, rounded up, at least one. That is wrong for every real tokenizer and right for a
reference: anybody can recompute a bill from the text with a pencil. All of this is pure; time and randomness come in as
arguments.
"""

import hashlib
import random
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import msgspec

TOKEN_BYTES = 4
BLOCK_TOKENS = 16  # vLLM's usual KV block; prefix hits come in whole blocks
_BLOCK_BYTES = TOKEN_BYTES * BLOCK_TOKENS
_JITTER_STEPS = 1024  # the jitter repeats after so many gaps, which no test can tell from randomness

# Words of exactly one token, ASCII, nothing to escape in JSON: text length, token count and wire bytes follow from
# each other.
_WORDS = (
    "the sun and sea say one two ten old new red sky day way man dog cat cup map pen ink oak elm ash ivy fog ice "
    "dew mud bay cow hen fox owl bee ant eel cod jam pie tea rye oat fig nut egg ham pot pan lid jug box bag tin "
    "net rod saw axe hut inn gap hub "
)
WORDS = tuple(_WORDS[i : i + TOKEN_BYTES].encode() for i in range(0, len(_WORDS), TOKEN_BYTES))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the model sees it: its bytes, and how many tokens they are."""

    data: bytes
    tokens: int


def count(data: bytes) -> int:
    """Tokens in UTF-8 bytes: one per four bytes, rounded up, at least one."""
    return max(1, -(-len(data) // TOKEN_BYTES))


def prompt_of_text(text: str) -> Prompt:
    """The prompt that is this text. Lone surrogates, which JSON can carry, count as a replacement character."""
    data = text.encode("utf-8", "replace")
    return Prompt(data, count(data))


def prompt_of_ids(ids: Iterable[int]) -> Prompt:
    """The prompt that is this array of token ids, as LangChain sends them. Each id is one token, whatever its
    value.
    """
    data = b"".join((token_id & 0xFFFFFFFF).to_bytes(TOKEN_BYTES, "little") for token_id in ids)
    return Prompt(data, max(1, len(data) // TOKEN_BYTES))


def chat_prompt(turns: Iterable[tuple[str, str]], tools: bytes = b"") -> Prompt:
    """Renders messages as (role, text) with a ChatML template. Tool definitions come first, as their JSON."""
    parts = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns]
    parts.append("<|im_start|>assistant\n")
    data = tools + "".join(parts).encode("utf-8", "replace")
    return Prompt(data, count(data))


# What the answer says


@dataclass(frozen=True, slots=True)
class Answer:
    """All that will be generated for one request, decided before the first token: one sequence per choice.

    `source` is what the echo model repeats; empty means words drawn from `seed`.
    """

    lengths: tuple[int, ...]  # tokens of each sequence
    finish_reasons: tuple[str, ...]
    reasoning_tokens: int  # the first so many tokens of each sequence are reasoning
    seed: int
    source: bytes

    def text(self, choice: int, first: int, last: int) -> bytes:
        """Tokens [first, last) of a sequence as the inside of a JSON string.

        Concatenated over any partition of the sequence this is the same text, also where a token ends inside a
        UTF-8 character: the character then belongs to the token that completes it, as with vLLM's incremental
        detokenizer.
        """
        if not self.source:
            if last - first == 1:
                return WORDS[(self.seed + choice + first) % len(WORDS)]
            begin = (self.seed + choice + first) % len(WORDS)
            end = last - first + begin
            return b"".join((WORDS * (end // len(WORDS) + 1))[begin:end])
        begin, end = _character_start(self.source, first * TOKEN_BYTES), _character_start(self.source, last * TOKEN_BYTES)
        return msgspec.json.encode(self.source[begin:end].decode())[1:-1]

    def generated(self, tokens_each: int) -> int:
        """Tokens made in all when each sequence has had time for `tokens_each`."""
        if len(self.lengths) == 1:
            return min(self.lengths[0], tokens_each)  # the common case, asked for every chunk
        return sum(min(length, tokens_each) for length in self.lengths)

    def reasoned(self, tokens_each: int) -> int:
        """The part of `generated` that is reasoning."""
        return sum(min(length, tokens_each, self.reasoning_tokens) for length in self.lengths)


def _character_start(data: bytes, offset: int) -> int:
    if offset >= len(data):
        return len(data)
    while data[offset] & 0xC0 == 0x80:
        offset -= 1
    return offset


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of answers. `natural` bounds apply where neither the echo nor `ignore_eos` decides."""

    natural_min: int
    natural_max: int
    context_max: int
    reasoning: int


def plan_answer(
    prompts: tuple[Prompt, ...],
    choices: int,
    *,
    tokens_max: int | None,
    ignore_eos: bool,
    echo: bytes,
    lengths: Lengths,
    seed: int,
) -> Answer:
    """Decides the whole answer from the prompt: the same request to the same settings always gets the same bytes.

    Ends by "length" where `tokens_max` or the context cuts it, else by "stop". With `ignore_eos` only those two end
    it.
    """
    sizes: list[int] = []
    reasons: list[str] = []
    natural = first_seed = 0
    for prompt in prompts:
        digest = hashlib.blake2b(prompt.data, digest_size=8, salt=seed.to_bytes(8, "little", signed=True)).digest()
        prompt_seed = int.from_bytes(digest, "little")
        first_seed = first_seed or prompt_seed
        left = lengths.context_max - prompt.tokens
        cap = left if tokens_max is None else min(tokens_max, left)
        for choice in range(choices):
            if echo:
                natural = count(echo) + lengths.reasoning
            else:
                natural = lengths.natural_min + (prompt_seed + choice) % (lengths.natural_max - lengths.natural_min + 1)
            size = cap if ignore_eos else min(natural, cap)
            sizes.append(size)
            reasons.append("stop" if not ignore_eos and natural <= cap else "length")
    source = echo
    if echo:
        # The echo is repeated where more is asked for than it has; `text` needs it as long as the longest sequence.
        again = 1 if max(sizes) <= natural else -(-max(sizes) * TOKEN_BYTES // len(echo))
        source = b" " * (TOKEN_BYTES * lengths.reasoning) + echo * again
    return Answer(tuple(sizes), tuple(reasons), min(lengths.reasoning, max(sizes)), first_seed % len(WORDS), source)


# When it is due


class Pace:
    """Times at which the chunks of one answer are due, in seconds from the moment it got its slot. Steps count from 1.

    `jitter` holds the sums of the first 0..N random gaps (each in -1..1 of a gap); it repeats after N.
    """

    __slots__ = ("_first", "_gap", "_jitter")

    def __init__(self, first_seconds: float, gap_seconds: float, jitter: tuple[float, ...] = (0.0,)) -> None:
        self._first = first_seconds
        self._gap = gap_seconds
        self._jitter = jitter

    def due(self, step: int) -> float:
        """Seconds until chunk `step` is there. Never decreases with the step."""
        gaps = step - 1
        rounds, rest = divmod(gaps, len(self._jitter) - 1) if len(self._jitter) > 1 else (0, 0)
        return self._first + self._gap * (gaps + rounds * self._jitter[-1] + self._jitter[rest])

    def steps_by(self, elapsed_seconds: float, steps_max: int) -> int:
        """Return how many chunks are there after so many seconds, at most `steps_max`."""
        low, high = 0, steps_max
        while low < high:
            middle = (low + high + 1) // 2
            if self.due(middle) <= elapsed_seconds:
                low = middle
            else:
                high = middle - 1
        return low


def jitter_sums(fraction: float, seed: int) -> tuple[float, ...]:
    """The table for `Pace`: sums of gaps drawn evenly from ±`fraction`. (0.0,) for no jitter."""
    if fraction == 0:
        return (0.0,)
    draw = random.Random(seed)
    return tuple(accumulate((draw.uniform(-fraction, fraction) for _ in range(_JITTER_STEPS)), initial=0.0))


# What is remembered of earlier prompts


class PrefixCache:
    """Prompt beginnings in the KV cache: blocks of 16 tokens, least recently used ones go first.

    A block is known by the digest of all bytes up to its end and the salt, so two salts never share one. As in vLLM
    a prompt never hits completely: at least its last token is computed. Unlike vLLM, generated tokens are not
    remembered, only prompts.
    """

    __slots__ = ("_blocks", "_blocks_max")

    def __init__(self, blocks_max: int) -> None:
        self._blocks: OrderedDict[bytes, None] = OrderedDict()
        self._blocks_max = blocks_max

    def __len__(self) -> int:
        return len(self._blocks)

    def take(self, prompt: Prompt, salt: str) -> int:
        """Tokens of the prompt found from its beginning, a multiple of 16 below its length; then remembers the
        prompt.
        """
        usable = (prompt.tokens - 1) // BLOCK_TOKENS
        digest = hashlib.blake2b(salt.encode("utf-8", "replace"), digest_size=16, person=b"tollway-prefix")
        blocks = self._blocks
        hits = 0
        matching = True
        for begin, end in pairwise(range(0, prompt.tokens * TOKEN_BYTES + 1, _BLOCK_BYTES)):
            if end > len(prompt.data):
                break
            digest.update(prompt.data[begin:end])
            key = digest.digest()
            if key in blocks:
                blocks.move_to_end(key)
                if matching and hits < usable:
                    hits += 1
            else:
                matching = False
                blocks[key] = None
        while len(blocks) > self._blocks_max:
            blocks.popitem(last=False)
        return hits * BLOCK_TOKENS
